"""DeepSpeed ZeRO 0-3 as a training engine. Sole importer of deepspeed, lazily."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from oral_ray.config import DeepSpeedEngine, TrainingConfig
from oral_ray.generator.data import Batch
from oral_ray.generator.engine import (
    MOMENTS,
    Snapshot,
    buffers_of,
    copied,
    num_updates,
    parts_of,
    restore_into,
    set_buffers,
    snapshot_of,
    swapped,
)
from oral_ray.generator.model import AnyNetwork

BUCKET_VALUES = 20_000_000


class ZeroEngine:
    """`Engine` over deepspeed.initialize; the process group must be there."""

    def __init__(
        self, network: AnyNetwork, training: TrainingConfig, settings: DeepSpeedEngine, device: torch.device
    ) -> None:
        os.environ["DS_ACCELERATOR"] = device.type  # else a GPU that is there is taken, whoever it was given to
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
        parts, weight = parts_of(batch, functional, self._training), self._training.functional.diffusion_weight
        losses = []
        for i, part in enumerate(parts):
            self._engine.set_gradient_accumulation_boundary(i + 1 == len(parts))
            loss = self._engine(part.to(self.device), functional, weight)
            self._engine.backward(loss / len(parts))
            self._engine.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def snapshot(self) -> Snapshot:
        if self._stage == 0:
            return snapshot_of(self._network, self._adam)
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {
            name: tuple(copied(cast(Tensor, safe_get_full_optimizer_state(p, key))) for key in MOMENTS)
            for name, p in self._network.named_parameters()
        }
        with self.gathered():
            weights = {name: copied(p) for name, p in self._network.named_parameters()}
        return Snapshot(weights, buffers_of(self._network), moments, num_updates(self._adam))

    def restore(self, snapshot: Snapshot) -> None:
        if self._stage == 0:
            restore_into(snapshot, self._network, self._adam)
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
        set_buffers(self._network, snapshot)

    @contextlib.contextmanager
    def using(self, other: list[Tensor]) -> Iterator[None]:
        # ZeRO-3 keeps whole weights for as long as it thinks they will be needed again; those would be the old ones.
        self._engine.empty_partition_cache()
        with swapped(self.local, other):
            yield
            self._engine.empty_partition_cache()

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        if self._stage < 3:
            return contextlib.nullcontext()
        return self._deepspeed.zero.GatheredParameters(self._parameters)
