"""Texts as token batches: right-padded, cut to a length; shared by the kinds of base that read text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oral_ray.errors import TaskError
from oral_ray.modalities.protocol import Tokens
from oral_ray.tasks.task import Example

MAX_TEXT_TOKENS = 256


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


def text_lengths(tokenizer: Any, examples: Sequence[Example]) -> list[int]:
    """The length of each text as the model reads it."""
    texts = [example.text for example in examples]
    return [len(ids) for ids in tokenizer(texts, truncation=True, max_length=MAX_TEXT_TOKENS)["input_ids"]]


def label_tokens(tokenizer: Any, labels: Sequence[str], before: str = "") -> list[list[int]]:
    """The tokens of every label, with `before` in front; TaskError for a label that has none."""
    rows = [tokenizer.encode(before + label, add_special_tokens=False) for label in labels]
    for label, row in zip(labels, rows, strict=True):
        if not row:
            raise TaskError(f"label {label!r} has no token in this model's vocabulary; rename it")
    return rows


def label_indices(labels: Sequence[str], examples: Sequence[Example]) -> Tensor:
    """The index of each example's label [B]."""
    return torch.tensor([labels.index(example.label) for example in examples])
