"""Everything in the library that imports ray. It knows Ray, not the method: callers bring functions and items.

with session(config.cluster, config.determinism):
    results = run_tasks([(train_one, (item,)) for item in items], config.cluster, retries=2, label="corpus", ...)
"""

from oral_ray.cluster.connection import device_of, limit_threads, session
from oral_ray.cluster.data import fold_parquet, write_parquet
from oral_ray.cluster.metrics import scrape_metrics
from oral_ray.cluster.tasks import Call, each_task, run_tasks
from oral_ray.cluster.training import run_workers, worker_checkpoint, worker_rank, worker_report, worker_rows

__all__ = [
    "Call", "device_of", "each_task", "fold_parquet", "limit_threads", "run_tasks", "run_workers",
    "scrape_metrics", "session", "worker_checkpoint", "worker_rank", "worker_report", "worker_rows",
    "write_parquet",
]  # fmt: skip
