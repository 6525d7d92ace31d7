"""What a training engine is, and what engines share: the protocol, whole states, weights put aside for a while.

An engine's state is a `Snapshot`: whole tensors by parameter name, whatever the engine splits over its workers. So a run
may go on with another number of workers, or another engine. It is 12 bytes a parameter on one worker's disk; generators
have at most 100 million.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from oral_ray.config import TrainingConfig
from oral_ray.generator.data import Batch

MOMENTS = ("exp_avg", "exp_avg_sq")


class Snapshot(NamedTuple):
    """Weights, buffers and AdamW's two moments by name, on the CPU, and the number of updates so far."""

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    moments: dict[str, tuple[Tensor, ...]]
    num_updates: int


class Engine(Protocol):
    """What a training engine must do. `local` are this worker's tensors of the weights, in a fixed order.

    All but `own` are called by all workers together; `own` is this worker's part of whole tensors, `using` puts other
    values into the weights for a while, `gathered` gives the network whole weights.
    """

    device: torch.device

    @property
    def local(self) -> list[Tensor]:
        """This worker's tensors of the weights, in a fixed order."""
        ...

    def own(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """This worker's part of whole tensors."""
        ...

    def step(self, batch: Batch, functional: Any, learning_rate: float) -> Tensor:
        """One update of the weights on a batch; the loss before it, a scalar."""
        ...

    def snapshot(self) -> Snapshot:
        """What training goes on from."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        ...

    def using(self, other: list[Tensor]) -> contextlib.AbstractContextManager[None]:
        """The block in which the weights have other values, in the order of `local`."""
        ...

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """The block in which the network has whole weights."""
        ...


def parts_of(batch: Batch, functional: Any, training: TrainingConfig) -> list[Batch]:
    """What one update is summed over. A functional step is one part: its loss is one, however many adapters stand by."""
    return [batch] if functional else batch.parts(training.accumulation)


def snapshot_of(network: nn.Module, adam: torch.optim.Optimizer) -> Snapshot:
    """The state of a network and its optimizer where nothing is split."""
    parameters = dict(network.named_parameters())
    return Snapshot(
        {name: copied(p) for name, p in parameters.items()},
        buffers_of(network),
        {name: tuple(copied(adam.state[p][key]) for key in MOMENTS) for name, p in parameters.items()},
        num_updates(adam),
    )


def num_updates(adam: torch.optim.Optimizer) -> int:
    """How many steps an AdamW has made; it must have made one."""
    return int(next(iter(adam.state.values()))["step"])


def restore_into(snapshot: Snapshot, network: nn.Module, adam: torch.optim.Optimizer) -> None:
    """The opposite of `snapshot_of`; names must fit."""
    network.load_state_dict(snapshot.weights | snapshot.buffers, strict=True)
    for name, p in network.named_parameters():
        values = {key: value.to(p.device) for key, value in zip(MOMENTS, snapshot.moments[name], strict=True)}
        adam.state[p] = {"step": torch.tensor(float(snapshot.num_updates)), **values}


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's buffers by name."""
    return {name: copied(buffer) for name, buffer in network.named_buffers()}


def set_buffers(network: nn.Module, snapshot: Snapshot) -> None:
    """Put a snapshot's buffers into a network."""
    for name, buffer in network.named_buffers():
        buffer.copy_(snapshot.buffers[name])


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, without gradient."""
    return tensor.detach().cpu().clone()


@contextlib.contextmanager
def swapped(local: list[Tensor], other: list[Tensor]) -> Iterator[None]:
    """Other values in these tensors for a block, and the old ones back after it."""
    kept = [tensor.clone() for tensor in local]
    with torch.no_grad():
        for tensor, value in zip(local, other, strict=True):
            tensor.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(local, kept, strict=True):
                tensor.copy_(value)
