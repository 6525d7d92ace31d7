"""Train one adapter for all tasks on mixes of the seen versions, for the corpus to start from (`corpus.start`).

It gets `evaluation.task_gradients` steps, or those of the functional phase, on `tasks.ids` and, where there is such a
phase, `tasks.further`; it is the arm `multitask`. Reads tasks and base versions; writes base versions that are made here,
`adapters/<digest>/`, `records/static/`; prints a digest for every architecture.

    python jobs/multitask.py --config infra/configs/unseen.toml
    python jobs/train.py --config infra/configs/unseen.toml corpus.start=DIGEST
"""

import sys

from oral_ray.cli import run_job
from oral_ray.cluster import session
from oral_ray.config import Config
from oral_ray.errors import ConfigError
from oral_ray.evaluation import static
from oral_ray.evaluation.arms.multitask import multitask_run
from oral_ray.objects import open_objects
from oral_ray.pipeline import bases, corpus
from oral_ray.pipeline.material import further_tasks
from oral_ray.pipeline.own_tasks import enter_tasks
from oral_ray.store.adapters import AdapterStore


def main(config: Config) -> dict[str, str]:
    """Train what is missing; the digest by the newest seen version of an architecture."""
    config = enter_tasks(config)
    corpus.check_unseen(config)
    if not config.tasks.ids:
        raise ConfigError("'tasks.ids' is empty; name the tasks to train on")
    if not corpus.seen_ids(config):
        raise ConfigError("'bases.versions' has no seen version; add one to train on, or set `seen` of one")
    with session(config.cluster, config.determinism):
        found = bases.run(config)
        together = corpus.families(config, found)
        further, seed = further_tasks(config), config.corpus.seeds[0]
        runs = [multitask_run(config, seen, further, False, seed) for seen in together]
        digests = static.train_all(config, runs, found)
        store = AdapterStore(open_objects(config.store))
        for digest in digests:
            store.get(digest)  # refused here rather than by who starts from it
    return {seen[-1]: digest for seen, digest in zip(together, digests, strict=True)}


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
