"""A Ray Train run, from the driver (`run_workers`) and from its workers (`worker_*`)."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train
from pyarrow.fs import FileSystem
from ray.train import CheckpointUploadMode
from ray.train.torch import TorchConfig, TorchTrainer
from tqdm import tqdm

from oral_ray.cluster.connection import require_ray
from oral_ray.cluster.failures import users_error
from oral_ray.config import TrainingConfig
from oral_ray.errors import ConfigError, OralError

logger = logging.getLogger(__name__)
_FILES_AT_ONCE, _BYTES_AT_ONCE = 2, 64 << 20  # for one worker; a row of a large model's adapter is more on its own


class _OwnFiles(ray.train.DataConfig):
    """Worker i of n streams files i, i + n, ... by itself, on its own node.

    Ray's default split deals blocks to whichever worker asks first, so what a worker sees differs from run to run, and
    all workers wait for one coordinator; files are written in equal parts, so dealing them out is fair and repeatable.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        super().__init__()
        self._uris = sorted(uris)

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: list[str] | None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        nodes = worker_node_ids or [None] * world_size
        return [{"corpus": _rows_of(self._uris[i::world_size], nodes[i]).iterator()} for i in range(world_size)]


def _rows_of(uris: Sequence[str], node_id: str | None = None) -> ray.data.Dataset:
    """The rows of Parquet files in order, read where they are needed, by tasks that ask for no CPU.

    The training workers may hold every CPU there is, and after the loss of a node they do. `ray.data.read_parquet` has
    tasks that list and sample files, which ask for a CPU whatever they are told: there the run would wait for ever.
    """
    files = ray.data.from_items([{"uri": uri} for uri in uris], override_num_blocks=len(uris))
    return files.map_batches(
        _read_files, batch_size=None, batch_format="pyarrow", num_cpus=0, compute=ray.data.TaskPoolStrategy(_FILES_AT_ONCE),
        label_selector={"ray.io/node-id": node_id} if node_id else None,
    )  # fmt: skip


def _read_files(files: pa.Table) -> Iterator[pa.Table]:
    for uri in files["uri"].to_pylist():
        filesystem, path = FileSystem.from_uri(quote(uri, safe=":/"))
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            num_bytes = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            num_rows = _BYTES_AT_ONCE * file.metadata.num_rows // max(1, num_bytes)
            for batch in file.iter_batches(max(1, num_rows)):
                yield pa.Table.from_batches([batch])


def run_workers(
    loop: Callable[[dict[str, Any]], None], loop_config: dict[str, Any], training: TrainingConfig, *,
    num_steps: int, uris: Sequence[str], storage_uri: str, name: str, collect: Callable[[Path], None],
) -> None:  # fmt: skip
    """Run `loop` on every worker of a Ray Train run, then `collect` its last checkpoint as a local folder.

    The run resumes from its last checkpoint in `storage_uri/name` after the loss of a worker, at most `max_failures`
    times, and when a run of the same name is started again. With `min_workers` it goes on with as many as there is room
    for, and takes more in when room comes.
    """
    require_ray("training")
    if len(uris) < training.num_workers:
        raise ConfigError(
            f"{training.num_workers} training workers need at least as many shard files, there are {len(uris)}; "
            "lower tokens.rows_per_file or training.num_workers"
        )
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # the node of a worker may be lost
    board: Any = ray.remote(_Board).options(num_cpus=0, label_selector=here).remote()
    trainer = TorchTrainer(
        loop,
        train_loop_config=loop_config | {"board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(training.min_workers, training.num_workers) if training.min_workers else training.num_workers,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker={"CPU": training.cpus_per_worker}
            | ({"GPU": training.gpus_per_worker} if training.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=quote(storage_uri, safe=":/"),
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if training.gpus_per_worker else "gloo"),
        datasets={"corpus": _rows_of(uris)},  # never read: every worker has its own
        dataset_config=_OwnFiles(uris),
    )
    try:
        with _shown(board, num_steps):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        known = next((found for cause in causes if (found := users_error(cause))), None)
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


def worker_report(
    board: Any, metrics: dict[str, Any], folder: Path | None, upload: Literal["async", "sync"] = "sync"
) -> None:
    """Report metrics, and with a folder a checkpoint, inside `run_workers`; the folder is deleted once it is uploaded.

    All workers report together. `board` is `loop_config["board"]`, where the driver reads the progress. `async` uploads
    while training goes on. Either way a checkpoint counts once Ray Train has entered it into the run's
    `checkpoint_manager_snapshot.json`, after its last file: a half-uploaded one is never resumed from.
    """
    if ray.train.get_context().get_world_rank() == 0:
        board.put.remote(metrics)
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(folder) if folder else None,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC if upload == "async" else CheckpointUploadMode.SYNC,
        delete_local_checkpoint_after_upload=True,
    )
