"""Parquet files written and folded with Ray Data, block by block, where the blocks are."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import SaveMode
from ray.data.datasource import FilenameProvider

from oral_ray.cluster.connection import require_ray
from oral_ray.cluster.failures import users_errors


def write_parquet(
    items: Sequence[dict[str, Any]], transform: Callable[[pa.Table], pa.Table], uri: str, rows_per_file: int
) -> None:
    """Stream items through a transform of Arrow tables with Ray Data and write `part-000000.parquet`, ... under a uri."""
    require_ray("writing shards")
    num_files = max(1, -(-len(items) // rows_per_file))
    dataset = ray.data.from_items(list(items), override_num_blocks=num_files)
    dataset = dataset.map_batches(transform, batch_format="pyarrow", batch_size=None)
    with users_errors():
        dataset.write_parquet(uri, filename_provider=_NumberedFiles(file_format="parquet"), mode=SaveMode.OVERWRITE)


def fold_parquet(uris: Sequence[str], fold: Callable[[pa.Table], bytes]) -> list[bytes]:
    """One value a block of Parquet files, computed with Ray Data where the block is."""

    def folded(table: pa.Table) -> pa.Table:
        return pa.table({"value": pa.array([fold(table)], pa.large_binary())})

    dataset = ray.data.read_parquet(list(uris)).map_batches(folded, batch_format="pyarrow", batch_size=None)
    with users_errors():
        return [row["value"] for row in dataset.take_all()]


class _NumberedFiles(FilenameProvider):
    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:06d}.parquet"
