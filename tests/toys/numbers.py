"""A toy kind of base that one file adds: it reads a number off a text, the place of the text's label among the labels.

The metric is a figure of the set of examples, and lower is better: the root of the mean squared error. A value is a row,
what the base says and what is wanted, so there is nothing to take a mean of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oral_ray.modalities.encoder import Encoder, embed
from oral_ray.modalities.metrics import Metric, Values
from oral_ray.modalities.protocol import Batch, TaskReader
from oral_ray.modalities.text import encode, label_indices, text_lengths
from oral_ray.tasks import Example


def root_mean_square(rows_N2: np.ndarray) -> float:
    """The error of a set of rows of what is said and what is wanted."""
    return float(np.sqrt(np.mean(np.square(rows_N2[:, 0] - rows_N2[:, 1]))))


RMSE = Metric("rmse", higher_is_better=False, figure=root_mean_square)


class Numbers(Encoder):
    """Sentence encoders that are asked for numbers."""

    name = "numbers"
    metrics = (RMSE,)

    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """Every label has a place; there is nothing to tell apart."""

    def reader(self, model: nn.Module, processor: Any, labels: Sequence[str]) -> TaskReader:
        """The reader of a task with labels."""
        return NumberReader(processor, tuple(labels))


@dataclass(frozen=True, slots=True)
class NumberReader:
    """The number is the first coordinate of the text's embedding, times ten."""

    tokenizer: Any
    labels: tuple[str, ...]

    @property
    def metric(self) -> Metric:
        return RMSE

    def read(self, examples: Sequence[Example]) -> Batch:
        wanted_B = 3.0 + label_indices(self.labels, examples).float()
        return Batch(encode(self.tokenizer, [example.text for example in examples]), wanted_B)

    def numbers(self, model: nn.Module, batch: Batch) -> Tensor:
        """The number [B] that the model reads off each text."""
        return 10 * embed(model, batch.tokens)[:, 0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(self.numbers(model, batch), batch.wanted_P)

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        return torch.zeros(())

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> Values:
        return torch.stack([self.numbers(model, batch), batch.wanted_P], dim=1).tolist()

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return text_lengths(self.tokenizer, examples)

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        return batch
