"""Run by test_generator_training.py in a process of its own: the same short training by torch and ZeRO 0-3.

deepspeed keeps global state and a process group, which no other test should see. Usage: deepspeed_stages.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from test_generator_training import SHORT, run

from oral_ray.config import DeepSpeedEngine, TorchEngine


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rows, tables = torch.load(folder / "corpus.pt", weights_only=False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    found = {}
    for name, engine in [
        ("torch", TorchEngine()),
        *((str(stage), DeepSpeedEngine(zero_stage=stage)) for stage in (0, 1, 2, 3)),
    ]:
        training = SHORT.model_copy(update={"engine": engine, "validation_frac": 0.3})
        whole = run(folder / f"{name}-whole", rows, tables, training)
        resumed = run(folder / f"{name}-resumed", rows, tables, training, resume=whole.at(4))
        found[name] = {
            "losses": [x for row in whole.metrics for x in (row.validation_loss, row.loss)],
            "weights": [float(tensor.double().norm()) for _, tensor in sorted(whole.saved(8).items())],
            "resumed_losses": [row.loss for row in resumed.metrics],
            "resumed_weights": [float(tensor.double().norm()) for _, tensor in sorted(resumed.saved(8).items())],
        }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
