"""What a kind of base has to offer, so that training, scoring and the functional phase are written once.

A `Modality` is a `Kind` of base model that also says how it reads a task. A `TaskReader` is
one task on one bare base: it turns examples into batches, and a batch into a loss (differentiable, for training) and
into one value per example (for scoring). It is built from the bare base, so an adapter cannot move what answers are
compared with.

    reader = modality_of("causal").reader(model, tokenizer, task.labels)
    batch = reader.read(task.examples("train")[:8])
    loss = reader.loss(model, batch)
    values = reader.values(model, batch)          # one value per example; reader.metric says what they are

Letters: B examples, T text tokens, H hidden size, K choices (labels, or the vocabulary), P answered positions.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from oral_ray.errors import TaskError
from oral_ray.modalities.kind import Kind
from oral_ray.modalities.metrics import Metric, Values
from oral_ray.tasks.task import Example

Tokens = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as a model reads them: `wanted_P` are the right choices, `where_BT` marks the positions that make them.

    Pooled answers of an encoder have one position per text and no `where_BT`. After `skip_layers` the tokens are the
    hidden states before layer `first_layer`.
    """

    tokens: Tokens
    wanted_P: Tensor
    where_BT: Tensor | None = None
    first_layer: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return dataclasses.replace(
            self,
            tokens={name: value.to(device) for name, value in self.tokens.items()},
            wanted_P=self.wanted_P.to(device),
            where_BT=None if self.where_BT is None else self.where_BT.to(device),
        )


class TaskReader(Protocol):
    """One task on one bare base. Batches are on the device of the base."""

    @property
    def metric(self) -> Metric:
        """What `values` are."""
        ...

    def read(self, examples: Sequence[Example]) -> Batch:
        """The examples as the model reads them."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The task's loss, differentiable in the adapter."""
        ...

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """What the bare base answers whatever it is asked: `values` is calibrated by it. Reads no right answers."""
        ...

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> Values:
        """One value per example of the batch: a float, or a row of floats as `metric.figure` takes them."""
        ...

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """How long each example is as the model reads it: like is batched with like."""
        ...

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        """The batch with everything below `first_layer` computed, exactly; the same batch where that cannot be."""
        ...


class Modality(Kind):
    """A kind of base model that is trained and scored on."""

    @abstractmethod
    def check(self, model: nn.Module, processor: Any) -> None:
        """One short text through a bare base; BaseModelError where it cannot be read, or the answer is no number."""

    def outputs(self, model: nn.Module, processor: Any) -> Tensor:
        """What a model answers to fixed random input: to tell whether two ways to attach an adapter compute the same.

        Of a model of text the logits, or the last hidden states, at fixed random tokens.
        """
        num = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        tokens = torch.randint(0, num, (2, 12), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(next(model.parameters()).device)
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return (found.logits if hasattr(found, "logits") else found.last_hidden_state).float()

    @abstractmethod
    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """TaskError where a base of this kind cannot tell two labels apart, or cannot write one."""

    @abstractmethod
    def reader(self, model: nn.Module, processor: Any, labels: Sequence[str]) -> TaskReader:
        """The reader of a task with these labels (none: free text) on a bare base; TaskError where it cannot be."""

    def check_metric(self, name: str) -> None:
        """TaskError where a task names a metric (empty: none) that bases of this kind are not scored by."""
        if name and name not in (known := [metric.name for metric in self.metrics]):
            raise TaskError(f"no metric {name!r} scores a base of kind {self.name!r}; there are {', '.join(known)}")


def batches(reader: TaskReader, examples: Sequence[Example], size: int = 16) -> Iterable[tuple[list[int], Batch]]:
    """Examples by length in batches, each with the examples' indices.

    Small batches of equal length beat large ones on a CPU (`python infra/dev/bench score`).
    """
    lengths = reader.lengths(examples)
    order = sorted(range(len(examples)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, reader.read([examples[i] for i in chosen])
