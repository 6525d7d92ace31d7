"""Training engines behind one protocol: plain torch (DistributedDataParallel over an initialised process group) and
DeepSpeed ZeRO 0-3. Sole importer of deepspeed, lazily.

    engine = build_engine(network, config.training, num_workers=1, device=torch.device("cpu"))
    loss = engine.step(batch.tensors(engine.device), None, learning_rate=1e-3)
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from oral_ray.config import DeepSpeedEngine, TrainingConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator.model import AnyNetwork

BUCKET_VALUES = 20_000_000


class Engine(Protocol):
    """What a training engine must do. `local` are this worker's tensors of the weights, in a fixed order."""

    device: torch.device

    @property
    def local(self) -> list[Tensor]: ...
    def step(self, inputs: Sequence[Tensor], functional: Any, learning_rate: float) -> Tensor: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...
    def gathered(self) -> contextlib.AbstractContextManager[None]: ...


def build_engine(network: AnyNetwork, training: TrainingConfig, num_workers: int, device: torch.device) -> Engine:
    """The configured engine around a network."""
    if isinstance(training.engine, DeepSpeedEngine):
        return _DeepSpeed(network, training, training.engine, device)
    return _Torch(network, training, num_workers, device)


class _Torch:
    def __init__(self, network: AnyNetwork, training: TrainingConfig, num_workers: int, device: torch.device) -> None:
        self.device = device
        network.to(device)
        self._network = network
        self._training = training
        self._model: nn.Module = nn.parallel.DistributedDataParallel(network) if num_workers > 1 else network
        self._optimizer = torch.optim.AdamW(network.parameters(), weight_decay=training.weight_decay)

    @property
    def local(self) -> list[Tensor]:
        return [parameter.data for parameter in self._network.parameters()]

    def step(self, inputs: Sequence[Tensor], functional: Any, learning_rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._training.dtype == "bfloat16"):
            loss = self._model(*inputs, functional, self._training.functional.diffusion_weight)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), self._training.grad_clip)
        self._optimizer.step()
        return loss.detach()

    def save(self, folder: Path) -> None:
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            torch.save(
                {"network": self._network.state_dict(), "optimizer": self._optimizer.state_dict()}, folder / "torch.pt"
            )

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "torch.pt", weights_only=True, map_location=self.device)
        self._network.load_state_dict(state["network"], strict=True)
        self._optimizer.load_state_dict(state["optimizer"])

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _DeepSpeed:
    def __init__(
        self, network: AnyNetwork, training: TrainingConfig, settings: DeepSpeedEngine, device: torch.device
    ) -> None:
        import deepspeed
        from deepspeed.ops import __compatible_ops__

        # Without this, start-up on a CPU compiles a shared-memory collective for two minutes (and a killed build
        # leaves a lock that hangs every later start); gloo does the work as well.
        __compatible_ops__["deepspeed_shm_comm"] = False
        self.device = device
        self._sharded = settings.zero_stage == 3
        self._diffusion_weight = training.functional.diffusion_weight
        # The default buckets hold 500 million values, 2 GB a worker, whatever the size of the network.
        zero: dict[str, Any] = {
            "stage": settings.zero_stage,
            "reduce_bucket_size": BUCKET_VALUES,
            "allgather_bucket_size": BUCKET_VALUES,
        }
        if settings.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        workers = torch.distributed.get_world_size()
        config = {
            "train_batch_size": training.batch_size,
            "train_micro_batch_size_per_gpu": training.batch_size // workers,
            "gradient_clipping": training.grad_clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "torch_autocast": {"enabled": training.dtype == "bfloat16", "dtype": "bfloat16"},
            "steps_per_print": 10**9,
        }
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self._engine, wrapped, _, _ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=config, dist_init_required=False
        )
        self._optimizer: Any = wrapped
        self._deepspeed = deepspeed
        self._parameters = list(network.parameters())

    @property
    def local(self) -> list[Tensor]:
        return [p.ds_tensor if self._sharded else p.data for p in self._parameters]  # type: ignore[attr-defined]

    def step(self, inputs: Sequence[Tensor], functional: Any, learning_rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._engine(*inputs, functional, self._diffusion_weight)
        self._engine.backward(loss)
        self._engine.step()
        return loss.detach()

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag="deepspeed")

    def load(self, folder: Path) -> None:
        found, _ = self._engine.load_checkpoint(str(folder), tag="deepspeed")
        if found is None:
            raise GeneratorError(f"no DeepSpeed state in {folder}; resume with the engine that wrote the checkpoint")

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        if not self._sharded:
            return contextlib.nullcontext()
        return self._deepspeed.zero.GatheredParameters(self._parameters)


@contextlib.contextmanager
def swapped(local: list[Tensor], other: list[Tensor]) -> Iterator[None]:
    """Put other values into the weights for a while; both lists are as before afterwards."""
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
