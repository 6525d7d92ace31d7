"""Everything in the library that imports ray. It knows Ray, not the method: callers bring functions and items.

    with session(config.cluster, config.determinism):
        results = run_tasks([(train_one, (item,)) for item in items], config.cluster, retries=2, label="corpus", ...)

Inside `ray job submit` (RAY_ADDRESS is set) the job's cluster is used, else a private one on this machine, with token
authentication, without dashboard, gone at the end of the block.
"""

import contextlib
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import ray.train
import torch
from ray.data import SaveMode
from ray.data.datasource import FilenameProvider
from ray.train.torch import TorchConfig, TorchTrainer
from tqdm import tqdm

from oral_ray.config import ClusterConfig, TrainingConfig
from oral_ray.errors import ConfigError, OralError, OutOfTimeError

logger = logging.getLogger(__name__)
_STARTED = time.monotonic()
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


@contextlib.contextmanager
def session(config: ClusterConfig, determinism: bool) -> Iterator[None]:
    """Connect to Ray for a block; an already connected process is left connected."""
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS") or config.address
    if address == "local":
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
    else:
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster at cluster.address={address!r}: {error}; start one or use 'local'"
            ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # so that an OralError arrives as one
    context.execution_options.preserve_order = determinism
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def store_uri(uri: str) -> str:
    """An absolute uri for workers. Inside a submitted job a relative folder would vanish with the job's temporary copy
    of the working directory, so it is taken relative to ORAL_HOME (default ~/.oral-ray) there."""
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if not path.is_absolute() and "/runtime_resources/working_dir_files/" in str(Path.cwd()):
        path = Path(os.environ.get("ORAL_HOME", Path.home() / ".oral-ray")) / path
        logger.warning(
            "store %r is relative and this is a submitted job: using %s (set ORAL_HOME to move it)", uri, path
        )
    if odd := {*"#?%"} & {*str(path.absolute())}:  # a uri would be cut or decoded there, and lead to another folder
        raise ConfigError(f"store folder {str(path.absolute())!r} holds {min(odd)!r}; choose one without '#', '?', '%'")
    return f"file://{path.absolute()}"


def limit_threads(num_threads: int, determinism: bool) -> None:
    """Fix this process's torch threads, and its choice of kernels when asked to."""
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(determinism)
    # Filling every fresh tensor would be a debugging aid; DeepSpeed's buckets make it five times the whole step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


def run_tasks(
    calls: Sequence[Call], config: ClusterConfig, *, determinism: bool, retries: int, label: str
) -> list[Any]:
    """`function(*arguments)` of every call as Ray tasks, results in the order of calls.

    At most as many tasks as the cluster has CPUs are in flight. A lost worker is retried `retries` times, an exception
    of the function is not: the others finish, then the first one is raised. Raises OutOfTimeError when
    `config.stop_after_s` have passed since the process began and calls are left; those in flight finish first.
    """
    if not calls:
        return []

    def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        limit_threads(config.threads_per_task, determinism)
        return function(*arguments)

    task = ray.remote(call).options(
        num_cpus=config.cpus_per_task, num_gpus=config.gpus_per_task or None, max_retries=retries, name=label
    )
    width = max(1, int(ray.cluster_resources().get("CPU", 1) / config.cpus_per_task))
    results: list[Any] = [None] * len(calls)
    waiting: dict[ray.ObjectRef, int] = {}
    failures: list[tuple[int, BaseException]] = []
    queue, num_done = iter(range(len(calls))), 0
    with tqdm(total=len(calls), desc=label, disable=not sys.stderr.isatty(), leave=False) as bar:
        while True:
            while not _out_of_time(config) and len(waiting) < width and (i := next(queue, None)) is not None:
                waiting[task.remote(*calls[i])] = i
            if not waiting:
                break
            done, _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(done[0])
            try:
                results[i] = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                failures.append((i, _users_error(error) or error))
            except ray.exceptions.RayError as error:
                failures.append((i, OralError(f"{label} {i} was lost {retries + 1} times: {error}")))
            num_done += 1
            bar.update()
            logger.info("%s: %d of %d", label, num_done, len(calls))
    if failures:
        logger.error("%s: %d of %d failed", label, len(failures), len(calls))
        raise sorted(failures, key=lambda failure: failure[0])[0][1]
    if num_done < len(calls):
        raise OutOfTimeError(
            f"{label}: {num_done} of {len(calls)} done when cluster.stop_after_s={config.stop_after_s:g} had passed; "
            "run the same command again to go on"
        )
    return results


def _out_of_time(config: ClusterConfig) -> bool:
    return config.stop_after_s is not None and time.monotonic() - _STARTED > config.stop_after_s


def write_parquet(
    items: Sequence[dict[str, Any]], transform: Callable[[pa.Table], pa.Table], uri: str, rows_per_file: int
) -> None:
    """Stream items through a transform of Arrow tables with Ray Data and write `part-000000.parquet`, ... under a uri."""
    num_files = max(1, -(-len(items) // rows_per_file))
    dataset = ray.data.from_items(list(items), override_num_blocks=num_files)
    dataset = dataset.map_batches(transform, batch_format="pyarrow", batch_size=None)
    with _users_errors():
        dataset.write_parquet(uri, filename_provider=_NumberedFiles(file_format="parquet"), mode=SaveMode.OVERWRITE)


def fold_parquet(uris: Sequence[str], fold: Callable[[pa.Table], bytes]) -> list[bytes]:
    """One value a block of Parquet files, computed with Ray Data where the block is."""

    def folded(table: pa.Table) -> pa.Table:
        return pa.table({"value": pa.array([fold(table)], pa.large_binary())})

    dataset = ray.data.read_parquet(list(uris)).map_batches(folded, batch_format="pyarrow", batch_size=None)
    with _users_errors():
        return [row["value"] for row in dataset.take_all()]


def _users_error(error: BaseException | None) -> OralError | None:
    """The OralError that a worker raised, dug out of what Ray wraps around it and puts below its message."""
    while isinstance(error, ray.exceptions.RayError) or (error is not None and not isinstance(error, OralError)):
        error = getattr(error, "cause", None) or error.__cause__
    return type(error)(str(error).partition("\n")[0]) if isinstance(error, OralError) else None


@contextlib.contextmanager
def _users_errors() -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _users_error(error) or error from None


class _NumberedFiles(FilenameProvider):
    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:06d}.parquet"


class _OwnFiles(ray.train.DataConfig):
    """Worker i of n streams files i, i + n, ... by itself.

    Ray's default split deals blocks to whichever worker asks first, so what a worker sees differs from run to run, and
    all workers wait for one coordinator; files are written in equal parts, so dealing them out is fair and repeatable.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        super().__init__()
        self._uris = sorted(uris)

    def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        return [{"corpus": ray.data.read_parquet(self._uris[i::world_size]).iterator()} for i in range(world_size)]


def run_workers(
    loop: Callable[[dict[str, Any]], None], loop_config: dict[str, Any], training: TrainingConfig, *,
    num_steps: int, uris: Sequence[str], storage_uri: str, name: str, collect: Callable[[Path], None],
) -> None:  # fmt: skip
    """Run `loop` on every worker of a Ray Train run, then `collect` its last checkpoint as a local folder.

    The run resumes from its last checkpoint in `storage_uri/name` after the loss of a worker, at most `max_failures`
    times, and when a run of the same name is started again.
    """
    if len(uris) < training.num_workers:
        raise ConfigError(
            f"{training.num_workers} training workers need at least as many shard files, there are {len(uris)}; "
            "lower tokens.rows_per_file or training.num_workers"
        )
    board: Any = ray.remote(_Board).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        loop,
        train_loop_config=loop_config | {"board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker={"CPU": training.cpus_per_worker}
            | ({"GPU": training.gpus_per_worker} if training.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_uri,
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
        datasets={"corpus": ray.data.read_parquet(list(uris))},
        dataset_config=_OwnFiles(uris),
    )
    try:
        with _shown(board, num_steps):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        known = next((found for cause in causes if (found := _users_error(cause))), None)
        logger.debug("training %s failed", name, exc_info=error)
        last = str(error).strip().rpartition("\n")[2]  # what a worker raised stands below its traceback
        raise known or OralError(
            f"training {name} failed more than {training.max_failures} times, in the end by {last}; its checkpoints are "
            "kept, run the same command again to go on (--verbose shows the traceback)"
        ) from error
    finally:
        ray.kill(board)
    if result.checkpoint is None:
        raise OralError(f"training {name} ended without a checkpoint; see its log under {storage_uri}/{name}")
    with result.checkpoint.as_directory() as folder:
        collect(Path(folder))


class _Board:
    """Actor that keeps the newest metrics of a run for the driver to show."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def put(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return rows


@contextlib.contextmanager
def _shown(board: Any, num_steps: int) -> Iterator[None]:
    """Log a run's metrics, and move a progress bar on a terminal, while the block runs."""
    done = threading.Event()

    def watch() -> None:
        with tqdm(total=num_steps, desc="training", disable=not sys.stderr.isatty(), leave=False) as bar:
            while not done.wait(1.0):
                for row in ray.get(board.take.remote()):
                    bar.update(row["step"] - bar.n)
                    logger.info("training: step %d of %d, loss %.4f", row["step"], num_steps, row["loss"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def worker_rank() -> tuple[int, int]:
    """(rank, number of workers) inside `run_workers`."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def worker_rows() -> Iterator[dict[str, Any]]:
    """One pass over this worker's rows inside `run_workers`."""
    shard: Any = ray.train.get_dataset_shard("corpus")
    yield from shard.iter_rows()


@contextlib.contextmanager
def worker_checkpoint() -> Iterator[Path | None]:
    """The last checkpoint as a local folder inside `run_workers`, or None in a fresh run."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def worker_report(board: Any, metrics: dict[str, Any], folder: Path | None) -> None:
    """Report metrics, and with a folder a checkpoint (folders of all workers are merged), inside `run_workers`.

    `board` is `loop_config["board"]`, where the driver reads the progress.
    """
    if ray.train.get_context().get_world_rank() == 0:
        board.put.remote(metrics)
    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    ray.train.report(metrics, checkpoint=checkpoint)
