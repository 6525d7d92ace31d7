"""What a model can tell apart: labels as its tokenizer reads them."""

from collections.abc import Sequence
from typing import Any

from oral_ray.errors import TaskError


def check_labels(kind: str, tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """The first token of every label, as a base of kind `encoder` or `causal` answers it.

    TaskError where two labels cannot be told apart: for an encoder because all their tokens are the same (capitals, or
    characters that its vocabulary does not have), for a causal language model because the first ones are.
    """
    causal = kind == "causal"
    rows = [tokenizer.encode(f" {label}" if causal else label, add_special_tokens=False) for label in labels]
    for label, row in zip(labels, rows, strict=True):
        if not row:
            raise TaskError(f"label {label!r} has no token in this model's vocabulary; rename it")
    if len({tuple(row[:1] if causal else row) for row in rows}) < len(rows):
        shared = "share a first token" if causal else "have one that is, token by token, the same as another"
        raise TaskError(f"labels {tuple(labels)} {shared} in this model's vocabulary; rename one of them")
    return [row[0] for row in rows]
