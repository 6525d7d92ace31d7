"""The training loop of the generator, the same for every engine: step, EMA, validation, checkpoints, resume.

Optimiser AdamW, linear warm-up, cosine decay to zero, gradient clipping; an exponential moving average of the weights is
what is sampled from. The loop knows nothing of Ray: it takes rows and hands folders to `report`.

A checkpoint is one file of whole tensors, so a run goes on with fewer workers or more, or with another engine; with the
same ones it goes on as if it had never stopped, bit for bit. Other workers have other shares of the corpus, so with
another number of them the rows differ.

    TrainingLoop(network, tables, read_rows, config.training, seed=0, rank=0, num_workers=1, report=report, ...).run()
"""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from oral_ray.config import Record, TrainingConfig, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.data import Batch, CorpusRow, CorpusTables, RowSource, make_batch
from oral_ray.generator.engine import Engine, Snapshot
from oral_ray.generator.engines import build_engine
from oral_ray.generator.model import AnyNetwork
from oral_ray.generator.spec import FunctionalItem

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
FunctionalDraw = Callable[[int, int | None], FunctionalItem]
"""An item by its seed and the seed of its base version (None: the item's own)."""


@dataclass(frozen=True)
class TrainingLoop:
    """One training on this worker: `training.steps` steps on the corpus, then `training.functional.steps` on task loss too.

    `read()` is one pass over this worker's share of the corpus. Of the rows of a batch `drop_text_frac` have no text and
    `drop_model_frac` no base. `seed` decides every draw, together with the worker's `rank` of `num_workers`. `resume` is a
    folder that `report` got, or None for a fresh start. `functional_item` makes the steps of the second phase; without it
    there is none.

    Every `checkpoint_every` steps and at the end `report(row, folder)` gets a folder with the EMA weights, as
    `save_network(state, folder)` writes them, and with all that `resume` needs; on rank 0, elsewhere it is None. `report`
    owns the folder and deletes it.
    """

    network: AnyNetwork
    tables: CorpusTables
    read: Callable[[], Iterable[CorpusRow]]
    training: TrainingConfig
    _: KW_ONLY
    drop_text_frac: float
    drop_model_frac: float
    seed: int
    rank: int
    num_workers: int
    resume: Path | None
    report: Report
    save_network: SaveNetwork
    functional_item: FunctionalDraw | None = None
    device: str = "cpu"

    def run(self) -> None:
        """Train to the end; GeneratorError when a batch cannot be shared out, or when the loss is not finite."""
        training, network = self.training, self.network
        if training.batch_size % (self.num_workers * training.accumulation):
            raise GeneratorError(
                f"training.batch_size={training.batch_size} is not divisible by training.num_workers={self.num_workers} x "
                f"accumulation={training.accumulation}"
            )
        engine = build_engine(network, training, self.num_workers, torch.device(self.device))
        ema = [tensor.detach().float().clone() for tensor in engine.local]
        first = 0
        if self.resume is not None:
            first, ema = _load(engine, network, self.resume)
            logger.info("resumed at step %d", first)
        source = RowSource(self.read, training)
        worker_batch = training.batch_size // self.num_workers
        rows = source.batches(worker_batch, derive_seed(self.seed, "rows", self.rank), first)
        held_out = source.held_out[: _smallest_over_workers(min(len(source.held_out), MAX_VALIDATION_ROWS))]
        losses: list[Tensor] = []
        wait_s, checkpoint_s, started = 0.0, 0.0, time.perf_counter()
        num_steps = training.steps + (training.functional.steps if self.functional_item else 0)
        for step in range(first, num_steps):
            before = time.perf_counter()
            batch = self._batch(step, next(rows))
            item = self._item(step)
            item = None if item is None else item.to(engine.device)
            wait_s += time.perf_counter() - before
            learning_rate = learning_rate_at(step, training)
            losses.append(engine.step(batch, item, learning_rate))
            age = step if step < training.steps else step - training.steps  # the average of a phase begins anew
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
                    validation_loss = _validate(network, self.tables, held_out, engine, training)
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
                folder = _save(engine, ema, network, step + 1, self.rank, self.save_network) if due else None
                self.report(row, folder)
                losses, wait_s, started = [], 0.0, time.perf_counter()
                checkpoint_s = started - before if due else 0.0

    def _is_functional(self, step: int) -> bool:
        return self.functional_item is not None and step >= self.training.steps

    def _batch(self, step: int, rows: list[CorpusRow]) -> Batch:
        """The corpus batch of a step; beside a functional item it has fewer adapters."""
        return make_batch(
            rows[: self.training.functional.batch_size] if self._is_functional(step) else rows,
            self.tables,
            self.drop_text_frac,
            self.drop_model_frac,
            self.training.high_noise_bias,
            derive_seed(self.seed, "step", step, self.rank),
            self.training.window_tokens,
        )

    def _item(self, step: int) -> FunctionalItem | None:
        """The functional item of a step of the second phase; `steps_per_base` of them in a row have one base."""
        if self.functional_item is None or not self._is_functional(step):
            return None
        per_base, base_seed = self.training.functional.steps_per_base, None
        if per_base > 1:
            turn = (step - self.training.steps) // per_base
            base_seed = derive_seed(self.seed, "virtual", turn, self.rank)
        return self.functional_item(derive_seed(self.seed, "functional", step, self.rank), base_seed)


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
