"""Train the corpus: one LoRA adapter a (task, seen base version, seed), the last K checkpoints of each run.

Reads tasks and base versions; writes base versions that are made here, `adapters/<digest>/`, `records/corpus/`.

    python jobs/corpus.py --config quickstart corpus.steps=50
    ray job submit --working-dir . -- python jobs/corpus.py --config quickstart
"""

import sys
from typing import Any

from oral_ray.cli import run_job
from oral_ray.config import Config
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.corpus import train_corpus
from oral_ray.pipeline.run import begin_run


def main(config: Config) -> dict[str, Any]:
    """Train what is missing and return a summary row."""
    run = begin_run(config)
    with run.session():
        run = resolve_bases(run)
        corpus = train_corpus(run)
    adapters = sum(len(entry.digests) for entry in corpus.values())
    return {"bases": list(run.bases), "runs": len(corpus), "adapters": adapters}


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
