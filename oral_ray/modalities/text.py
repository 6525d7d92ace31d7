"""Texts as token batches: right-padded, cut to a length; shared by the kinds of base that read text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oral_ray.errors import BaseModelError, TaskError
from oral_ray.modalities.protocol import Tokens
from oral_ray.tasks.task import Example

MAX_TEXT_TOKENS = 256
PROBE_TEXT = "The cat sat on the mat, and 12 birds sang."


def encode(tokenizer: Any, texts: Sequence[str], suffix: str = "", max_tokens: int = MAX_TEXT_TOKENS) -> Tokens:
    """Tokenise texts, right-padded, cut to `max_tokens` (the suffix is never cut)."""
    if suffix:
        return padded(tokenizer, [torch.tensor(row) for row in encoded(tokenizer, texts, suffix, max_tokens)])
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_tokens, padding_side="right",
        return_tensors="pt",
    )  # fmt: skip
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def encoded(tokenizer: Any, texts: Sequence[str], suffix: str, max_tokens: int) -> list[list[int]]:
    """Token ids of each text with the suffix behind it, cut to `max_tokens`; the suffix is never cut."""
    tail = tokenizer.encode(suffix, add_special_tokens=False)
    return [
        row + tail for row in tokenizer(list(texts), truncation=True, max_length=max_tokens - len(tail))["input_ids"]
    ]


def padded(tokenizer: Any, rows: Sequence[Tensor]) -> Tokens:
    """Rows of token ids as one right-padded batch with its attention mask."""
    return {
        "input_ids": nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def text_lengths(tokenizer: Any, examples: Sequence[Example], max_tokens: int = MAX_TEXT_TOKENS) -> list[int]:
    """The length of each text as the model reads it."""
    texts = [example.text for example in examples]
    return [len(ids) for ids in tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]]


def text_limit(model: nn.Module, num_after: int = 0) -> int:
    """How many tokens of a text a model reads: `MAX_TEXT_TOKENS`, or what its positions leave beside `num_after` more."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None) or MAX_TEXT_TOKENS + num_after + 2
    return max(1, min(MAX_TEXT_TOKENS, positions - 2 - num_after))  # RoBERTa's positions begin at 2


def check_answers(tokenizer: Any, tokens: Tokens, made: Tensor) -> None:
    """BaseModelError where a tokenizer knows nothing of an English text, or what a model makes of it is not finite."""
    known = tokens["input_ids"][tokens["attention_mask"].bool()].tolist()
    plain = [token for token in known if token not in tokenizer.all_special_ids]
    if not plain:
        raise BaseModelError("its tokenizer knows no part of an English text; upload the vocabulary of this base")
    if not bool(torch.isfinite(made).all()):
        raise BaseModelError("its outputs are not finite, though its weights are; compare its config.json")


def label_tokens(tokenizer: Any, labels: Sequence[str], before: str = "", after: str = "") -> list[list[int]]:
    """The tokens of every label with `before` in front, as they follow the text `after`; TaskError for one without.

    Tokenizers that mark the start of a text (Llama 2's) split a label otherwise where it stands alone.
    """
    start = tokenizer.encode(after, add_special_tokens=False) if after else []
    rows = []
    for label in labels:
        row = tokenizer.encode(after + before + label, add_special_tokens=False)
        follows = row[: len(start)] == start
        rows.append(row[len(start) :] if follows else tokenizer.encode(before + label, add_special_tokens=False))
        if not rows[-1]:
            raise TaskError(f"label {label!r} has no token in this model's vocabulary; rename it")
    return rows


def label_indices(labels: Sequence[str], examples: Sequence[Example]) -> Tensor:
    """The index of each example's label [B]."""
    return torch.tensor([labels.index(example.label) for example in examples])
