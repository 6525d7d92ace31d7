"""What readers of tasks have in common that choose: one of the labels of a task, or one token after another."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.errors import TaskError
from oral_ray.modalities.metrics import ACCURACY, Metric, Values
from oral_ray.modalities.protocol import Batch, TaskReader
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
    """A reader of a task with labels: one choice per example, calibrated by what the bare base always likes.

    A dataclass whose fields include `metric: Metric = ACCURACY`: a task that names another metric of choices has it there.
    """

    metric: Metric = ACCURACY

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """The log of the mean probability of each label [K]."""
        return torch.cat([self.logits(model, batch).softmax(-1) for batch in batches]).mean(0).log()

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> Values:
        """What the metric makes of the likeliest label and the wanted one of every example."""
        scores_BK = self.logits(model, batch).log_softmax(-1)
        if prior is not None:
            scores_BK = scores_BK - prior
        chosen_B, wanted_B = (places.cpu().numpy() for places in (scores_BK.argmax(-1), batch.wanted_P))
        assert self.metric.of_choices
        return self.metric.of_choices(chosen_B, wanted_B).tolist()


def measured_by(reader: TaskReader, metric: Metric) -> TaskReader:
    """The reader with another metric; TaskError where its answers are no choices, or the metric is not of choices."""
    if not isinstance(reader, LabelChoice) or not metric.of_choices:
        raise TaskError(
            f"the metric {metric.name!r} cannot measure what a {type(reader).__name__} answers, which has "
            f"{reader.metric.name!r}; leave `metric` out of the task"
        )
    return dataclasses.replace(reader, metric=metric)  # type: ignore[type-var]
