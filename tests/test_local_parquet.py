"""Tables are read without a thread that could outlive the reading: one that is left aborts the interpreter at its end."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from oral_ray.local.parquet import parse_table, read_frame

ROOT = Path(__file__).parents[1]
FRAME = pd.DataFrame({"task": ["a", "b"], "value": [0.5, 1.0], "seen": [True, False]})


def test_a_table_comes_back_as_pandas_reads_it(tmp_path: Path):
    FRAME.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_frame(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "t.parquet"))
    assert parse_table((tmp_path / "t.parquet").read_bytes()).to_pylist() == FRAME.to_dict("records")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100])
def test_a_damaged_table_is_an_error_of_pyarrow(data: bytes, tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises((pa.ArrowException, OSError)):
        read_frame(tmp_path / "t.parquet")


def test_reading_starts_no_thread(tmp_path: Path):
    FRAME.to_parquet(tmp_path / "t.parquet")
    code = (
        "import os, pathlib, sys\nimport pandas\nfrom oral_ray.local.parquet import read_frame\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = tasks()\nread_frame(pathlib.Path(sys.argv[1]))\nprint(tasks() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "t.parquet")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "0\n"


def test_nothing_reads_tables_in_a_pool_of_threads():
    pooled = re.compile(r"\bpd\.read_parquet\(|\bpq\.read_table\(")
    found = [path for room in ("oral_ray", "jobs", "serve") for path in (ROOT / room).rglob("*.py")
             if pooled.search(path.read_text())]  # fmt: skip
    assert found == []
