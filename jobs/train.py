"""Train the generator with Ray Train on the shards, by DeepSpeed or plain torch (`training.engine.kind`).

Reads `shards/<fingerprint>/` (made first where missing); writes checkpoints to `training/<recipe>/`, the generator and
its metrics to `generators/<recipe>/`. Resumes after a lost worker and when it is run again; a finished recipe is left.

    python jobs/train.py --config quickstart training.engine.kind=torch
    ray job submit --working-dir . -- python jobs/train.py --config quickstart
"""

import sys
from typing import Any

from oral_ray.cli import run_job
from oral_ray.config import Config
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.run import begin_run
from oral_ray.pipeline.walk import walk


def main(config: Config) -> dict[str, Any]:
    """Train unless it is done, and return a summary row."""
    run = begin_run(config)
    with run.session():
        recipe = walk(resolve_bases(run)).recipe
    last = run.training_log(recipe)[-1]
    return {"generator": recipe, "uri": f"{config.store.uri}/generators/{recipe}", **last}


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
