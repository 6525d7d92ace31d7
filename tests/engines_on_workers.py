"""Run by test_generator_engines.py in processes of their own: the same short training by every engine.

deepspeed keeps global state and a process group, which no other test should see. Two workers train and resume; a single
one then goes on from what the two have left. Usage: engines_on_workers.py FOLDER RANK NUM_WORKERS
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from test_generator_training import SHORT, SPEC, Run, run

from oral_ray.config import DeepSpeedEngine, TorchEngine, TrainingConfig
from oral_ray.generator.engine import Snapshot
from oral_ray.generator.engines import build_engine
from oral_ray.generator.model import build_network

TRAINING = SHORT.model_copy(update={"num_workers": 2, "validation_frac": 0.3})
VARIANTS: dict[str, dict[str, Any]] = {
    "torch": {"engine": TorchEngine()},
    **{f"zero-{stage}": {"engine": DeepSpeedEngine(zero_stage=stage)} for stage in (0, 1, 2, 3)},  # type: ignore[arg-type]
    "zero-2, offload": {"engine": DeepSpeedEngine(zero_stage=2, offload_optimizer=True)},
    "torch, two parts": {"engine": TorchEngine(), "accumulation": 2},
    **{f"zero-{n}, two parts": {"engine": DeepSpeedEngine(zero_stage=n), "accumulation": 2} for n in (2, 3)},  # type: ignore[arg-type]
    "torch, recomputed": {"engine": TorchEngine(), "activation_checkpointing": True},
    "zero-3, recomputed": {"engine": DeepSpeedEngine(zero_stage=3), "activation_checkpointing": True},
    "torch, bfloat16": {"engine": TorchEngine(), "dtype": "bfloat16"},
    "zero-2, bfloat16": {"engine": DeepSpeedEngine(zero_stage=2), "dtype": "bfloat16"},
}


def main(folder: Path, rank: int, num_workers: int) -> None:
    torch.set_num_threads(1)
    rows, tables = torch.load(folder / "corpus.pt", weights_only=False)
    group = f"file://{folder}/group-{num_workers}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=num_workers)
    found = {}
    for name, options in VARIANTS.items():
        training = TRAINING.model_copy(update={**options, "num_workers": num_workers})
        left = folder / "2" / name / "step-4"

        def ran(kind: str, resume: Path | None, training: TrainingConfig = training, name: str = name) -> Run:
            return run(
                folder / kind / name, rows[rank::num_workers], tables, training, resume=resume, rank=rank,
                num_workers=num_workers,
            )  # fmt: skip

        if num_workers == 2:
            found[name] = {"whole": summary(ran("2", None), rank)}
            torch.distributed.barrier()  # rank 0 has written what rank 1 resumes from
            found[name]["resumed"] = summary(ran("2-resumed", left), rank)
        else:
            fewer = summary(ran("1", left), rank)
            found[name] = {"fewer": fewer, "restored": restored(training, left)}
    if rank == 0:
        (folder / f"found-{num_workers}.json").write_text(json.dumps(found))


def summary(done: Run, rank: int) -> dict[str, Any]:
    weights = [float(t.double().norm()) for _, t in sorted(done.saved(8).items())] if rank == 0 else []
    return {
        "losses": [row.loss for row in done.metrics],
        "validation": [row.validation_loss for row in done.metrics],
        "weights": weights,
    }


def restored(training: TrainingConfig, left: Path) -> bool:
    """Whether an engine that took a snapshot in gives the very same one out."""
    saved = torch.load(left / "trainer.pt", weights_only=True)
    del saved["ema"]
    engine = build_engine(build_network(SPEC, 7), training, 1, torch.device("cpu"))
    engine.restore(Snapshot(**saved))
    again = engine.snapshot()
    return (
        again.num_updates == saved["num_updates"] == 4
        and all(torch.equal(again.weights[name], value) for name, value in saved["weights"].items())
        and all(torch.equal(a, b) for name, pair in saved["moments"].items()
                for a, b in zip(again.moments[name], pair, strict=True))
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # Not through the interpreter's end: deepspeed keeps groups whose Gloo threads may still hold a tensor, and one that
    # asks for the GIL then aborts the process, now and then (pytorch/pytorch#179291).
    os._exit(0)
