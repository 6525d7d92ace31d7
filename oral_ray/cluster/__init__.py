"""Everything in the library that imports ray. It knows Ray, not the method: callers bring functions and items.

with session(config.cluster, config.determinism):
    results = run_tasks([(train_one, (item,)) for item in items], config.cluster, retries=2, label="corpus", ...)

What this module names is imported without ray. `cluster.data` (Parquet files) and `cluster.training` (Ray Train) import
it, so a stage imports them where it has work for them.
"""

from oral_ray.cluster.connection import device_of, limit_threads, session
from oral_ray.cluster.tasks import Call, each_task, run_tasks

__all__ = [
    "Call", "device_of", "each_task", "limit_threads", "run_tasks", "session",
]  # fmt: skip
