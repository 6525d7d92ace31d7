"""The training engines by configuration: plain torch (DistributedDataParallel over an initialised process group) here,
DeepSpeed ZeRO 0-3 in `zero`.

    engine = build_engine(network, config.training, num_workers=1, device=torch.device("cpu"))
    loss = engine.step(batch, None, learning_rate=1e-3)
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oral_ray.config import DeepSpeedEngine, TrainingConfig
from oral_ray.generator.data import Batch
from oral_ray.generator.engine import Engine, Snapshot, parts_of, restore_into, snapshot_of, swapped
from oral_ray.generator.model import AnyNetwork
from oral_ray.generator.zero import ZeroEngine


def build_engine(network: AnyNetwork, training: TrainingConfig, num_workers: int, device: torch.device) -> Engine:
    """The configured engine around a network."""
    network.to(device)
    if training.activation_checkpointing:
        recompute_blocks(network)
    if isinstance(training.engine, DeepSpeedEngine):
        return ZeroEngine(network, training, training.engine, device)
    return _Torch(network, training, num_workers, device)


def recompute_blocks(network: nn.Module) -> None:
    """Let every block (an item of a ModuleList) keep its inputs only and run again in the backward pass."""
    for blocks in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class _Torch:
    def __init__(self, network: AnyNetwork, training: TrainingConfig, num_workers: int, device: torch.device) -> None:
        self.device = device
        self._network = network
        self._training = training
        self._model: nn.Module = nn.parallel.DistributedDataParallel(network) if num_workers > 1 else network
        self._optimizer = torch.optim.AdamW(network.parameters(), weight_decay=training.weight_decay)

    @property
    def local(self) -> list[Tensor]:
        return [parameter.data for parameter in self._network.parameters()]

    def own(self, whole: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(self.device) for tensor in whole]

    def step(self, batch: Batch, functional: Any, learning_rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        parts, weight = parts_of(batch, functional, self._training), self._training.functional.diffusion_weight
        losses = []
        for i, part in enumerate(parts):
            with self._summed_here(i + 1 < len(parts)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self._training.dtype == "bfloat16"):
                    loss = self._model(part.to(self.device), functional, weight)
                (loss / len(parts)).backward()
            losses.append(loss.detach())
        nn.utils.clip_grad_norm_(self._network.parameters(), self._training.grad_clip)
        self._optimizer.step()
        return torch.stack(losses).mean()

    def _summed_here(self, more: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between workers with the last part only."""
        if more and isinstance(self._model, nn.parallel.DistributedDataParallel):
            return self._model.no_sync()
        return contextlib.nullcontext()

    def snapshot(self) -> Snapshot:
        return snapshot_of(self._network, self._optimizer)

    def restore(self, snapshot: Snapshot) -> None:
        restore_into(snapshot, self._network, self._optimizer)

    def using(self, other: list[Tensor]) -> contextlib.AbstractContextManager[None]:
        return swapped(self.local, other)

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
