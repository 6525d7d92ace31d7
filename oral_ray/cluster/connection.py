"""The connection to Ray, and how many threads a process takes.

Inside `ray job submit` (RAY_ADDRESS is set) the job's cluster is used, else a private one on this machine, with token
authentication, without dashboard, gone at the end of the block. Either begins with the first work that needs it: a run
that finds everything done starts nothing, and imports no ray.
"""

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator

import torch

from oral_ray.config import ClusterConfig
from oral_ray.errors import ConfigError

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}

# A private session is foreground work on one machine. Ray would give its workers the lowest priority but for four, and
# keep idle ones, a gigabyte each, for ever; here they go when the next stage has not taken them within 15 s. Threads that
# spin while they wait made a training step on a busy machine seven times as long.
_PRIVATE = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_worker_niceness": "0",
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "15000",
}


_connect: Callable[[], None] | None = None
"""What connects this process to Ray: set inside a session, taken by the first work that needs Ray."""


@contextlib.contextmanager
def session(config: ClusterConfig, determinism: bool) -> Iterator[None]:
    """Have Ray for a block: the first work that needs it connects; a process that is connected already is left so."""
    global _connect
    if _connect is not None or _is_connected():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if config.address == "none":
        yield
        return

    def connect() -> None:
        _start(config)
        _set_data_context(determinism)

    _connect = connect
    try:
        yield
    finally:
        _connect = None
        if _is_connected():
            import ray

            ray.shutdown()


def require_ray(what: str) -> None:
    """Connect to Ray; ConfigError where the session has none: Ray itself would start a default cluster and a dashboard."""
    if _is_connected():
        return
    if _connect is None:
        raise ConfigError(f"{what} needs Ray, and cluster.address='none' has none; use 'local' or a cluster's address")
    _connect()


def _is_connected() -> bool:
    """Whether this process is connected to Ray, which takes no import of it to tell."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _start(config: ClusterConfig) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS") or config.address
    if address != "local":
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster at cluster.address={address!r}: {error}; start one or use 'local'"
            ) from None
        return
    for name, value in _PRIVATE.items():
        os.environ.setdefault(name, value)
    # Ray turns token authentication on by itself (where RAY_AUTH_MODE does not say no) and would write the token to
    # the home folder; a token of this process's own is neither shared nor left behind.
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=config.num_cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=config.object_store_bytes,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    if config.gpus_per_task > (there := ray.cluster_resources().get("GPU", 0)):  # its tasks would wait for ever
        ray.shutdown()
        raise ConfigError(f"cluster.gpus_per_task={config.gpus_per_task:g}, and this machine has {there:g} GPUs; set 0")


def _set_data_context(determinism: bool) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that an OralError arrives as one
    context.execution_options.preserve_order = determinism
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def limit_threads(num_threads: int, determinism: bool) -> None:
    """Fix this process's torch threads, and its choice of kernels when asked to."""
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(determinism)
    if determinism:  # CUDA's condition for it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Filling every fresh tensor would be a debugging aid; DeepSpeed's buckets make it five times the whole step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_of(num_gpus: float) -> str:
    """Where a worker that was given `num_gpus` computes; ConfigError where it was given one that torch cannot use."""
    if num_gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"this worker has {num_gpus:g} GPU of the cluster and torch {torch.__version__} sees no CUDA device; install "
            "torch with CUDA there, or set gpus_per_task, gpus_per_worker or gpus_per_replica to 0"
        )
    return "cuda" if num_gpus else "cpu"
