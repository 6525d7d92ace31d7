"""How a model answers a task: one logit per label, differentiable, the same code in training and in evaluation.

Encoders: cosine between the mean-pooled, normalised text and frozen label embeddings, over a temperature of 0.05.
Causal language models: the logit of each label's first token after `text + "\\nAnswer:"`.

Letters: B texts, T text tokens, H hidden size, K labels.

    head = build_head("encoder", model, tokenizer, task.labels)
    logits_BK = head.logits(model, encode(tokenizer, texts))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from oral_ray.errors import TaskError

ModelKind = Literal["encoder", "causal"]
TextBatch = dict[str, Tensor]
TEMPERATURE = 0.05
MAX_TEXT_TOKENS = 128
ANSWER = "\nAnswer:"


class Head(Protocol):
    """Turns a model and texts into label logits; built from the bare base, so adapters cannot move the labels."""

    @property
    def suffix(self) -> str: ...
    def logits(self, model: nn.Module, batch: TextBatch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class EncoderHead:
    """Cosine to frozen label embeddings `label_KH` (normalised rows)."""

    label_KH: Tensor
    suffix: str = ""

    def logits(self, model: nn.Module, batch: TextBatch) -> Tensor:
        return embed(model, batch) @ self.label_KH.T / TEMPERATURE


@dataclass(frozen=True, slots=True)
class CausalHead:
    """Next-token logits at the rows of the labels' first tokens."""

    label_token_K: Tensor
    suffix: str = ANSWER

    def logits(self, model: nn.Module, batch: TextBatch) -> Tensor:
        last = batch["attention_mask"].sum(1) - 1
        logits_BTV = model(**batch).logits
        return logits_BTV[torch.arange(len(last)), last][:, self.label_token_K].float()


def build_head(kind: ModelKind, model: nn.Module, tokenizer: Any, labels: Sequence[str]) -> Head:
    """The head of a task on a bare base model; TaskError where two labels start with one token."""
    if kind == "encoder":
        with torch.no_grad():
            return EncoderHead(embed(model, encode(tokenizer, labels)))
    tokens = [tokenizer.encode(f" {label}", add_special_tokens=False)[0] for label in labels]
    if len(set(tokens)) < len(tokens):
        raise TaskError(f"labels {tuple(labels)} share a first token in this model's vocabulary; rename one of them")
    return CausalHead(torch.tensor(tokens))


def encode(tokenizer: Any, texts: Sequence[str], suffix: str = "", max_tokens: int = MAX_TEXT_TOKENS) -> TextBatch:
    """Tokenise texts, right-padded, cut to `max_tokens` (the suffix is never cut)."""
    if suffix:
        tail = tokenizer.encode(suffix, add_special_tokens=False)
        cut = tokenizer(list(texts), truncation=True, max_length=max_tokens - len(tail))["input_ids"]
        rows = [torch.tensor(row + tail) for row in cut]
        masks = [torch.ones_like(row) for row in rows]
        return {
            "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": nn.utils.rnn.pad_sequence(masks, batch_first=True),
        }
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_tokens, padding_side="right",
        return_tensors="pt",
    )  # fmt: skip
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def embed(model: nn.Module, batch: TextBatch) -> Tensor:
    """Mean-pooled, normalised sentence embeddings [B, H]."""
    hidden_BTH = model(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"].unsqueeze(-1).to(hidden_BTH.dtype)
    return nn.functional.normalize((hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1), dim=-1)


def num_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The length of each text as the model reads it, to batch like with like: padding is computed too."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=MAX_TEXT_TOKENS)["input_ids"]]


@torch.no_grad()
def log_probs(model: nn.Module, tokenizer: Any, head: Head, texts: Sequence[str], batch_size: int = 16) -> Tensor:
    """Log-probabilities [N, K] of the labels; texts are grouped by length, the order of rows is the order of texts.

    Small batches of equal length beat large ones on a CPU (`oral-ray bench score`).
    """
    lengths = num_tokens(tokenizer, texts)
    order = sorted(range(len(texts)), key=lambda i: (lengths[i], i))
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        logits = head.logits(model, encode(tokenizer, [texts[i] for i in chosen], head.suffix))
        for i, row in zip(chosen, logits.log_softmax(-1), strict=True):
            rows[i] = row
    return torch.stack(rows)
