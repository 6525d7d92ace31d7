"""Parquet files, read in the calling thread alone.

pyarrow's `read_table`, and pandas' `read_parquet` with it, reads in a pool of threads that outlive the call. One that lets
go of a Python object while the interpreter ends aborts the whole process, after the work is done: one in six runs of a
short command did. A reader that starts no thread leaves none behind.

    rows = parse_table(objects.get(key)).to_pylist()
    frame = read_frame(folder / "scores.parquet")
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pandas as pd


def parse_table(data: bytes) -> pa.Table:
    """The table that the bytes of a Parquet file hold; pa.ArrowException or OSError where they are damaged."""
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
        return file.read(use_threads=False)


def read_frame(path: Path) -> "pd.DataFrame":
    """A Parquet file as a pandas table; pa.ArrowException or OSError where it is damaged or not there."""
    return parse_table(path.read_bytes()).to_pandas(use_threads=False)
