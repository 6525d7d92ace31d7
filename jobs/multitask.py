"""Train one adapter for all tasks on mixes of the seen versions, for the corpus to start from (`corpus.start`).

It gets `evaluation.task_gradients` steps, or those of the functional phase, on `tasks.ids` and, where there is such a
phase, `tasks.further`; it is the arm `multitask`. Reads tasks and base versions; writes base versions that are made here,
`adapters/<digest>/`, `records/static/`; prints a digest for every architecture.

    python jobs/multitask.py --config unseen
    python jobs/train.py --config unseen corpus.start=DIGEST
"""

import sys

from oral_ray.cli import run_job
from oral_ray.config import Config
from oral_ray.errors import ConfigError
from oral_ray.evaluation.arms.multitask import multitask_run
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.corpus import families, seen_ids
from oral_ray.pipeline.material import auxiliary_tasks
from oral_ray.pipeline.run import begin_run
from oral_ray.pipeline.static import train_all


def main(config: Config) -> dict[str, str]:
    """Train what is missing; the digest by the newest seen version of an architecture."""
    run = begin_run(config)
    config = run.config
    if not config.tasks.ids:
        raise ConfigError("'tasks.ids' is empty; name the tasks to train on")
    if not seen_ids(config):
        raise ConfigError("'bases.versions' has no seen version; add one to train on, or set `seen` of one")
    with run.session():
        run = resolve_bases(run)
        together = families(run)
        auxiliary, seed = auxiliary_tasks(run), config.corpus.seeds[0]
        digests = train_all(run, [multitask_run(config, seen, auxiliary, False, seed) for seen in together])
        for digest in digests:
            run.adapters.get(digest)  # refused here rather than by who starts from it
    return {seen[-1]: digest for seen, digest in zip(together, digests, strict=True)}


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
