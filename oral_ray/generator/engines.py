"""Training engines behind one protocol: plain torch (DistributedDataParallel over an initialised process group) and
DeepSpeed ZeRO 0-3. Sole importer of deepspeed, lazily.

An engine's state is a `Snapshot`: whole tensors by parameter name, whatever the engine splits over its workers. So a run
may go on with another number of workers, or another engine. It is 12 bytes a parameter on one worker's disk; generators
have at most 100 million.

    engine = build_engine(network, config.training, num_workers=1, device=torch.device("cpu"))
    loss = engine.step(batch, None, learning_rate=1e-3)
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oral_ray.config import DeepSpeedEngine, TrainingConfig
from oral_ray.generator.data import Batch
from oral_ray.generator.model import AnyNetwork

BUCKET_VALUES = 20_000_000
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
    def local(self) -> list[Tensor]: ...
    def own(self, whole: Sequence[Tensor]) -> list[Tensor]: ...
    def step(self, batch: Batch, functional: Any, learning_rate: float) -> Tensor: ...
    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...
    def using(self, other: list[Tensor]) -> contextlib.AbstractContextManager[None]: ...
    def gathered(self) -> contextlib.AbstractContextManager[None]: ...


def build_engine(network: AnyNetwork, training: TrainingConfig, num_workers: int, device: torch.device) -> Engine:
    """The configured engine around a network."""
    network.to(device)
    if training.activation_checkpointing:
        recompute_blocks(network)
    if isinstance(training.engine, DeepSpeedEngine):
        return _DeepSpeed(network, training, training.engine, device)
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
        parts = _parts(batch, functional, self._training)
        losses = []
        for i, part in enumerate(parts):
            with self._summed_here(i + 1 < len(parts)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self._training.dtype == "bfloat16"):
                    loss = self._model(
                        **part.inputs(self.device), functional=functional,
                        diffusion_weight=self._training.functional.diffusion_weight,
                    )  # fmt: skip
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
        return _snapshot(self._network, self._optimizer)

    def restore(self, snapshot: Snapshot) -> None:
        _restore(snapshot, self._network, self._optimizer)

    def using(self, other: list[Tensor]) -> contextlib.AbstractContextManager[None]:
        return _swapped(self.local, other)

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
        self._stage = settings.zero_stage
        self._training = training
        # The default buckets hold 500 million values, 2 GB a worker, whatever the size of the network.
        zero: dict[str, Any] = {
            "stage": settings.zero_stage,
            "reduce_bucket_size": BUCKET_VALUES,
            "allgather_bucket_size": BUCKET_VALUES,
        }
        if settings.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        # Accumulation is ours (`step`): a functional step has one part, and DeepSpeed knows one number for all steps.
        config = {
            "train_batch_size": training.batch_size,
            "train_micro_batch_size_per_gpu": training.batch_size // torch.distributed.get_world_size(),
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
        self._adam: torch.optim.Optimizer = optimizer if self._stage == 0 else self._optimizer.optimizer
        self._deepspeed = deepspeed
        self._network = network

    @property
    def _parameters(self) -> list[Any]:
        return list(self._network.parameters())

    @property
    def local(self) -> list[Tensor]:
        return [p.ds_tensor if self._stage == 3 else p.data for p in self._parameters]

    def own(self, whole: Sequence[Tensor]) -> list[Tensor]:
        if self._stage < 3:
            return [tensor.to(self.device) for tensor in whole]
        rank = torch.distributed.get_rank()
        parts = []
        for tensor, local in zip(whole, self.local, strict=True):
            part = tensor.flatten()[rank * local.numel() : (rank + 1) * local.numel()]
            parts.append(nn.functional.pad(part, (0, local.numel() - part.numel())).to(self.device))
        return parts

    def step(self, batch: Batch, functional: Any, learning_rate: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        parts = _parts(batch, functional, self._training)
        losses = []
        for i, part in enumerate(parts):
            self._engine.set_gradient_accumulation_boundary(i + 1 == len(parts))
            loss = self._engine(
                **part.inputs(self.device), functional=functional,
                diffusion_weight=self._training.functional.diffusion_weight,
            )  # fmt: skip
            self._engine.backward(loss / len(parts))
            self._engine.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def snapshot(self) -> Snapshot:
        if self._stage == 0:
            return _snapshot(self._network, self._adam)
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {
            name: tuple(_copy(cast(Tensor, safe_get_full_optimizer_state(p, key))) for key in MOMENTS)
            for name, p in self._network.named_parameters()
        }
        with self.gathered():
            weights = {name: _copy(p) for name, p in self._network.named_parameters()}
        return Snapshot(weights, _buffers(self._network), moments, _num_updates(self._adam))

    def restore(self, snapshot: Snapshot) -> None:
        if self._stage == 0:
            _restore(snapshot, self._network, self._adam)
            return
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        # ZeRO makes AdamW's state in the first step; it must be there before values can be put into it.
        if self._stage == 3:
            flats = self._optimizer.fp32_partitioned_groups_flat
        else:
            flats = [flat for group in self._adam.param_groups for flat in group["params"]]
        for flat in flats:
            step = torch.tensor(float(snapshot.num_updates))
            self._adam.state[flat] = {"step": step} | {key: torch.zeros_like(flat) for key in MOMENTS}
        if self._stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()
        set_weight, set_moment = (
            (safe_set_local_fp32_param, safe_set_local_optimizer_state)
            if self._stage == 3
            else (safe_set_full_fp32_param, safe_set_full_optimizer_state)
        )
        names = [name for name, _ in self._network.named_parameters()]
        weights = self.own([snapshot.weights[name] for name in names])
        moments = [self.own([snapshot.moments[name][i] for name in names]) for i in range(len(MOMENTS))]
        for i, parameter in enumerate(self._parameters):
            self.local[i].copy_(weights[i])
            set_weight(parameter, weights[i])
            for key, values in zip(MOMENTS, moments, strict=True):
                set_moment(parameter, values[i], key)
        _set_buffers(self._network, snapshot)

    @contextlib.contextmanager
    def using(self, other: list[Tensor]) -> Iterator[None]:
        # ZeRO-3 keeps whole weights for as long as it thinks they will be needed again; those would be the old ones.
        self._engine.empty_partition_cache()
        with _swapped(self.local, other):
            yield
            self._engine.empty_partition_cache()

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        if self._stage < 3:
            return contextlib.nullcontext()
        return self._deepspeed.zero.GatheredParameters(self._parameters)


def _parts(batch: Batch, functional: Any, training: TrainingConfig) -> list[Batch]:
    """What one update is summed over. A functional step is one part: its loss is one, however many adapters stand by."""
    return [batch] if functional else batch.parts(training.accumulation)


def _snapshot(network: nn.Module, adam: torch.optim.Optimizer) -> Snapshot:
    parameters = dict(network.named_parameters())
    return Snapshot(
        {name: _copy(p) for name, p in parameters.items()},
        _buffers(network),
        {name: tuple(_copy(adam.state[p][key]) for key in MOMENTS) for name, p in parameters.items()},
        _num_updates(adam),
    )


def _num_updates(adam: torch.optim.Optimizer) -> int:
    return int(next(iter(adam.state.values()))["step"])


def _restore(snapshot: Snapshot, network: nn.Module, adam: torch.optim.Optimizer) -> None:
    network.load_state_dict(snapshot.weights | snapshot.buffers, strict=True)
    for name, p in network.named_parameters():
        values = {key: value.to(p.device) for key, value in zip(MOMENTS, snapshot.moments[name], strict=True)}
        adam.state[p] = {"step": torch.tensor(float(snapshot.num_updates)), **values}


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: _copy(buffer) for name, buffer in network.named_buffers()}


def _set_buffers(network: nn.Module, snapshot: Snapshot) -> None:
    for name, buffer in network.named_buffers():
        buffer.copy_(snapshot.buffers[name])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


@contextlib.contextmanager
def _swapped(local: list[Tensor], other: list[Tensor]) -> Iterator[None]:
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
