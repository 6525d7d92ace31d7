"""What readers of tasks have in common that choose: one of the labels of a task, or one token after another."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.modalities.metrics import ACCURACY, Metric, Values
from oral_ray.modalities.protocol import Batch
from oral_ray.modalities.text import text_lengths
from oral_ray.tasks.task import Example


class ChoosingReader(ABC):
    """A reader whose model gives a logit [P, K] to every choice at every answered position."""

    tokenizer: Any
    max_tokens: int

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [P, K] of the choices."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of the right choices."""
        return F.cross_entropy(self.logits(model, batch), batch.wanted_P)

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each text."""
        return text_lengths(self.tokenizer, examples, self.max_tokens)


class LabelChoice(ChoosingReader):
    """A reader of a task with labels: one choice per example, calibrated by what the bare base always likes."""

    @property
    def metric(self) -> Metric:
        """The mean of the right answers."""
        return ACCURACY

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """The log of the mean probability of each label [K]."""
        return torch.cat([self.logits(model, batch).softmax(-1) for batch in batches]).mean(0).log()

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> Values:
        """1 for every example whose label is the likeliest, else 0."""
        scores_BK = self.logits(model, batch).log_softmax(-1)
        if prior is not None:
            scores_BK = scores_BK - prior
        return (scores_BK.argmax(-1) == batch.wanted_P).float().tolist()
