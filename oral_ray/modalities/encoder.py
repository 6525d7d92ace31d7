"""Sentence encoders: an answer is the label whose embedding is nearest to the text's.

The logit of a label is the cosine between the mean-pooled, normalised text and the label's embedding by the bare base,
over a temperature of 0.05.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.errors import TaskError
from oral_ray.modalities.metrics import ACCURACY, Metric
from oral_ray.modalities.protocol import Batch, TaskReader, Tokens
from oral_ray.modalities.text import (
    PROBE_TEXT,
    check_answers,
    encode,
    label_indices,
    label_tokens,
    text_lengths,
    text_limit,
)
from oral_ray.tasks.task import Example

TEMPERATURE = 0.05


class Encoder:
    """Sentence encoders of any family that `AutoModel` loads."""

    name = "encoder"
    auto_class = "AutoModel"
    metrics = (ACCURACY,)

    @torch.no_grad()
    def check(self, model: nn.Module, processor: Any) -> None:
        """BaseModelError where the model cannot read a text."""
        tokens = encode(processor, [PROBE_TEXT])
        check_answers(processor, tokens, embed(model, tokens))

    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """TaskError where two labels are the same token by token (capitals, characters that the vocabulary lacks)."""
        rows = label_tokens(processor, labels)
        if len({tuple(row) for row in rows}) < len(rows):
            raise TaskError(
                f"labels {tuple(labels)} have one that is, token by token, the same as another in this model's "
                "vocabulary; rename one of them"
            )

    def reader(self, model: nn.Module, processor: Any, labels: Sequence[str]) -> TaskReader:
        """The reader of a task with labels; TaskError for free text, which an encoder cannot write."""
        if not labels:
            raise TaskError("an encoder cannot write free text; give the task labels or take a causal language model")
        self.check_labels(processor, labels)
        with torch.no_grad():
            return EncoderReader(processor, tuple(labels), embed(model, encode(processor, labels)), text_limit(model))


@dataclass(frozen=True, slots=True)
class EncoderReader:
    """Cosine to frozen label embeddings `label_KH` (normalised rows)."""

    tokenizer: Any
    labels: tuple[str, ...]
    label_KH: Tensor
    max_tokens: int

    @property
    def metric(self) -> Metric:
        return ACCURACY

    def read(self, examples: Sequence[Example]) -> Batch:
        tokens = encode(self.tokenizer, [example.text for example in examples], max_tokens=self.max_tokens)
        return Batch(tokens, label_indices(self.labels, examples)).to(self.label_KH.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, K] of the labels."""
        return embed(model, batch.tokens) @ self.label_KH.T / TEMPERATURE

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(model, batch), batch.wanted_P)

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """The log of the mean probability of each label [K]."""
        return torch.cat([self.logits(model, batch).softmax(-1) for batch in batches]).mean(0).log()

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> list[float]:
        scores_BK = self.logits(model, batch).log_softmax(-1)
        scores_BK = scores_BK if prior is None else scores_BK - prior
        return (scores_BK.argmax(-1) == batch.wanted_P).float().tolist()

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return text_lengths(self.tokenizer, examples, self.max_tokens)

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        return batch


def embed(model: nn.Module, tokens: Tokens) -> Tensor:
    """Mean-pooled, normalised sentence embeddings [B, H], on the device of the model."""
    device = next(model.parameters()).device
    tokens = {name: value.to(device) for name, value in tokens.items()}
    hidden_BTH = model(**tokens).last_hidden_state
    mask_BT1 = tokens["attention_mask"].unsqueeze(-1).to(hidden_BTH.dtype)
    return nn.functional.normalize((hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1), dim=-1)
