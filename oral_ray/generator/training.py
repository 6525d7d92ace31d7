"""The training loop of the generator, the same for every engine: step, EMA, validation, checkpoints, resume.

Optimiser AdamW, linear warm-up, cosine decay to zero, gradient clipping; an exponential moving average of the weights is
what is sampled from. The loop knows nothing of Ray: it takes rows and hands folders to `report`.

A checkpoint is one file of whole tensors, so a run goes on with fewer workers or more, or with another engine; with the
same ones it goes on as if it had never stopped, bit for bit. Other workers have other shares of the corpus, so with
another number of them the rows differ.

    train(network, tables, read_rows, config.training, seed=0, rank=0, num_workers=1, resume=None, report=report, ...)
"""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oral_ray.config import Record, TrainingConfig, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.data import CorpusRow, CorpusTables, RowSource, make_batch
from oral_ray.generator.engine import Engine, Snapshot
from oral_ray.generator.engines import build_engine
from oral_ray.generator.model import AnyNetwork

logger = logging.getLogger(__name__)
STATE, TENSORS = "trainer.json", "trainer.pt"
MAX_VALIDATION_ROWS = 64


class MetricsRow(Record):
    """One row of the training log: mean loss since the last row, validation loss (EMA weights), seconds a step.

    `checkpoint_s`: for how long the run has stood still for a checkpoint since the last row.
    """

    step: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    step_s: float
    data_wait_s: float
    checkpoint_s: float


Report = Callable[[MetricsRow, Path | None], None]
SaveNetwork = Callable[[dict[str, Tensor], Path], None]
FunctionalDraw = Callable[[int, int | None], Any]
"""A FunctionalItem by its seed and the seed of its base version (None: the item's own)."""


def train(
    network: AnyNetwork, tables: CorpusTables, read: Callable[[], Iterable[CorpusRow]], training: TrainingConfig, *,
    drop_text_frac: float, drop_model_frac: float, seed: int, rank: int, num_workers: int, resume: Path | None,
    report: Report, save_network: SaveNetwork, functional_item: FunctionalDraw | None = None, device: str = "cpu",
) -> None:  # fmt: skip
    """Train `training.steps` steps on the corpus, then `training.functional.steps` on task loss too.

    Every `checkpoint_every` steps and at the end `report` gets a folder.

    `save_network(state, folder)` is called on rank 0 with the EMA weights. The folder that `report` gets holds them and
    all that `resume` needs (on rank 0, elsewhere it is None); `report` owns it and deletes it. Raises GeneratorError when
    the loss is not finite.
    """
    if training.batch_size % (num_workers * training.accumulation):
        raise GeneratorError(
            f"training.batch_size={training.batch_size} is not divisible by training.num_workers={num_workers} x "
            f"accumulation={training.accumulation}"
        )
    engine = build_engine(network, training, num_workers, torch.device(device))
    ema = [tensor.detach().float().clone() for tensor in engine.local]
    first = 0
    if resume is not None:
        first, ema = _load(engine, network, resume)
        logger.info("resumed at step %d", first)
    worker_batch = training.batch_size // num_workers
    source = RowSource(read, training)
    rows = source.batches(worker_batch, derive_seed(seed, "rows", rank), first)
    held_out = source.held_out[: _smallest_over_workers(min(len(source.held_out), MAX_VALIDATION_ROWS))]
    losses: list[Tensor] = []
    wait_s, checkpoint_s, started = 0.0, 0.0, time.perf_counter()
    num_steps = training.steps + (training.functional.steps if functional_item else 0)
    for step in range(first, num_steps):
        before = time.perf_counter()
        phase_step = step - training.steps
        functional = functional_item if phase_step >= 0 else None
        chosen = next(rows)
        batch = make_batch(
            chosen[: training.functional.batch_size] if functional else chosen,
            tables,
            drop_text_frac,
            drop_model_frac,
            training.high_noise_bias,
            derive_seed(seed, "step", step, rank),
            training.window_tokens,
        )
        item = None
        if functional:
            per_base = training.functional.steps_per_base
            base_seed = derive_seed(seed, "virtual", phase_step // per_base, rank) if per_base > 1 else None
            item = functional(derive_seed(seed, "functional", step, rank), base_seed).to(engine.device)
        wait_s += time.perf_counter() - before
        learning_rate = learning_rate_at(step, training)
        losses.append(engine.step(batch, item, learning_rate))
        age = step if phase_step < 0 else phase_step
        decay = min(training.ema_decay, (1 + age) / (10 + age))
        for average, tensor in zip(ema, engine.local, strict=True):
            average.lerp_(tensor.detach().float(), 1 - decay)
        last = step + 1 == num_steps
        if last or (step + 1) % training.validate_every == 0 or (step + 1) % training.checkpoint_every == 0:
            loss = _mean_over_workers(float(torch.stack(losses).mean()))
            if not math.isfinite(loss):
                raise GeneratorError(f"loss is {loss} at step {step + 1}; lower training.learning_rate")
            elapsed = time.perf_counter() - started
            with engine.using(ema):
                validation_loss = _validate(network, tables, held_out, engine, training)
            row = MetricsRow(
                step=step + 1,
                loss=loss,
                validation_loss=validation_loss,
                learning_rate=learning_rate,
                step_s=elapsed / len(losses),
                data_wait_s=wait_s / len(losses),
                checkpoint_s=checkpoint_s,
            )
            before = time.perf_counter()
            due = last or (step + 1) % training.checkpoint_every == 0
            report(row, _save(engine, ema, network, step + 1, rank, save_network) if due else None)
            losses, wait_s, started = [], 0.0, time.perf_counter()
            checkpoint_s = started - before if due else 0.0


def learning_rate_at(step: int, training: TrainingConfig) -> float:
    """Linear warm-up over `warmup_steps`, cosine decay to zero at `steps`; the same shape again in the second phase."""
    peak, start, end = training.learning_rate, 0, training.steps
    if step >= training.steps:
        peak, start, end = training.functional.learning_rate, training.steps, training.steps + training.functional.steps
    if step - start < training.warmup_steps:
        return peak * (step - start + 1) / training.warmup_steps
    progress = (step - start - training.warmup_steps) / max(1, end - start - training.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def _smallest_over_workers(count: int) -> int:
    """Every worker validates on as many rows: under ZeRO-3 all must call the network alike."""
    smallest = torch.tensor(count)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
    return int(smallest)


@torch.no_grad()
def _validate(
    network: AnyNetwork, tables: CorpusTables, rows: list[CorpusRow], engine: Engine, training: TrainingConfig
) -> float | None:
    """Loss on held-out adapters with fixed noise and wordings; None where there are none."""
    if not rows:
        return None
    total = 0.0
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        batch = make_batch(part, tables, 0.0, 0.0, 1.0, derive_seed(0, "validation", start), training.window_tokens)
        total += float(network(batch.to(engine.device))) * len(part)
    return _mean_over_workers(total / len(rows))


def _mean_over_workers(value: float) -> float:
    if not torch.distributed.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()


def _save(
    engine: Engine, ema: list[Tensor], network: AnyNetwork, step: int, rank: int, save_network: SaveNetwork
) -> Path | None:
    """A fresh folder with all of the run, on rank 0; the other workers only help to gather it."""
    snapshot = engine.snapshot()
    with engine.using(ema), engine.gathered():
        if rank > 0:
            return None
        averaged = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    folder = Path(tempfile.mkdtemp(prefix="oral-checkpoint-"))
    save_network(averaged, folder)
    torch.save({"ema": averaged, **snapshot._asdict()}, folder / TENSORS)
    (folder / STATE).write_text(json.dumps({"step": step}))
    return folder


def _load(engine: Engine, network: AnyNetwork, folder: Path) -> tuple[int, list[Tensor]]:
    """The step of a checkpoint and this worker's part of its moving average; the engine is as it was then."""
    try:
        saved = torch.load(folder / TENSORS, weights_only=True, map_location="cpu", mmap=True)
    except FileNotFoundError:
        raise GeneratorError(
            f"checkpoint {folder} has no {TENSORS}: another version wrote it; delete its run below training/"
        ) from None
    ema = saved.pop("ema")
    engine.restore(Snapshot(**saved))
    own = engine.own([ema[name] for name, _ in network.named_parameters()])
    return int(json.loads((folder / STATE).read_text())["step"]), [tensor.float().clone() for tensor in own]
