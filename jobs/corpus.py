"""Train the corpus: one LoRA adapter a (task, seen base version, seed), the last K checkpoints of each run.

Reads tasks and base versions; writes base versions that are made here, `adapters/<digest>/`, `records/corpus/`.

    python jobs/corpus.py --config infra/configs/quickstart.toml corpus.steps=50
    ray job submit --working-dir . -- python jobs/corpus.py --config infra/configs/quickstart.toml
"""

import sys
from typing import Any

from oral_ray.cli import run_job
from oral_ray.cluster import session
from oral_ray.config import Config
from oral_ray.pipeline import corpus
from oral_ray.pipeline.own_tasks import enter_tasks


def main(config: Config) -> dict[str, Any]:
    """Train what is missing and return a summary row."""
    config = enter_tasks(config)
    with session(config.cluster, config.determinism):
        found = corpus.run(config)
        entries = corpus.train_runs(config, corpus.plan_targets(config, found), found)
    return {"bases": list(found), "runs": len(entries), "adapters": sum(len(entry.digests) for entry in entries)}


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
