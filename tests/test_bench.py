"""The benchmark harness: what it times, fits, records and prints, and what it refuses."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dev.bench.registry import DEV_BENCH

from oral_ray.bench import registry
from oral_ray.bench.harness import (
    BenchOptions,
    Exponent,
    Report,
    Result,
    compare,
    fit_exponent,
    report_text,
    table,
    with_peak_memory,
)  # fmt: skip
from oral_ray.bench.registry import BENCH, Benchmarks
from oral_ray.cli import main
from oral_ray.config import build_section
from oral_ray.errors import ConfigError, OralError


def test_candidates_are_timed_in_turn_after_one_warm_up_and_compared_with_the_first():
    calls: list[str] = []

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds if len(calls) > 2 else 0.2)  # a slow warm-up must not count

    rows = compare({"a": lambda: call("a", 0.01), "b": lambda: call("b", 0.05)}, repetitions=3)
    assert "".join(calls) == "ab" + 3 * "ab"
    assert [row["what"] for row in rows] == ["a", "b"]
    assert rows[0]["ratio"] == 1.0
    assert 2.0 < float(rows[1]["ratio"]) < 6.0
    assert all(0 < float(row["lowest"]) <= float(row["seconds"]) <= float(row["highest"]) < 0.2 for row in rows)
    assert [row["runs"] for row in rows] == [3, 3]


def test_an_exponent_is_recovered_from_a_power_law_and_its_fit_says_how_well():
    x = [1e5, 1e6, 1e7, 1e8]
    exact = fit_exponent("exact", x, [3e-6 * value**1.02 for value in x])
    assert exact.exponent == pytest.approx(1.02)
    assert exact.constant == pytest.approx(3e-6)
    assert exact.r2 == pytest.approx(1.0)
    assert (exact.num_points, exact.x_range) == (4, (1e5, 1e8))
    noisy = fit_exponent("noisy", x, [1.0, 100.0, 1.0, 100.0])
    assert noisy.r2 < 0.5


def test_peak_memory_is_what_a_call_needed_at_once_and_not_what_an_earlier_one_did():
    def touch(num_bytes: int) -> int:
        return int(np.ones(num_bytes, np.uint8)[-1])

    with_peak_memory(lambda: touch(400_000_000))
    result, peak_bytes = with_peak_memory(lambda: touch(100_000_000))
    assert result == 1
    assert 90_000_000 < peak_bytes < 200_000_000


class Planted(BenchOptions):
    """Options of a benchmark that takes no time."""

    size: int = 1


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch):
    def run(options: Planted) -> Result:
        return Result(rows=({"what": "a", "size": options.size},))

    monkeypatch.setitem(BENCH.about, "planted", "a benchmark that takes no time")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "oral_ray.bench.planted", SimpleNamespace(Options=Planted, run=run))


@pytest.mark.usefixtures("planted")
def test_a_report_says_what_ran_where_and_with_which_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "deep" / "planted.json"
    assert main(["bench", "planted", "size=7", "repetitions=2", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["command"] == "oral-ray bench planted size=7 repetitions=2"
    assert written["options"] == {"repetitions": 2, "size": 7}
    assert written["result"] == {"rows": [{"what": "a", "size": 7}], "peers": [], "floors": [], "exponents": []}
    about = written["environment"]
    assert about["cores"] >= 1
    assert about["threads"] >= 1
    assert about["packages"]["torch"].startswith("2.")
    assert len(about["load"]) == 3
    assert about["cpu"] in capsys.readouterr().out


def test_a_report_prints_every_part_and_a_row_that_lacks_a_column_shows_it():
    fit = Exponent(what="seconds of n", exponent=1.01, constant=1.0, r2=0.99, num_points=3, x_range=(1.0, 100.0))
    result = Result(
        rows=({"what": "a", "num": 12345, "seconds": 0.5}, {"what": "b", "ok": True}),
        peers=({"what": "peer"},), floors=({"what": "floor"},), exponents=(fit,),
    )  # fmt: skip
    environment = {"cpu": "C", "cores": 2, "threads": 2, "memory_gb": 1, "gpus": [], "commit": "c", "load": [0.1]}
    text = report_text(Report(name="n", command="", options={}, environment=environment, result=result))
    for part in ("C, 2 cores", "no GPU", "peers\nwhat", "floors\nwhat", "seconds of n: exponent 1.010 (r2 0.9900"):
        assert part in text
    assert table(result.rows).splitlines() == [
        "what     num  seconds    ok",
        "a     12,345      0.5     -",
        "b          -        -  True",
    ]


def test_an_unknown_benchmark_or_option_is_refused_by_name(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=r"unknown benchmark 'fast'; there are generate, sample, .* and all"):
        BENCH.report("fast")
    assert main(["bench", "sample", "depth=3"]) == 2
    assert "unknown configuration key 'depth'; valid here: repetitions" in capsys.readouterr().err
    assert main(["bench", "sample", "repetitions=0"]) == 2
    assert "'repetitions'" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(Benchmarks, "report", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "report.json"):
        assert main(["bench", "sample", "--json", str(wrong)]) == 2
        assert str(wrong if wrong == tmp_path else wrong.parent) in capsys.readouterr().err
    registry.check_report(tmp_path / "new" / "report.json")
    assert [*(tmp_path / "new").rglob("*")] == []


def test_a_report_replaces_the_one_before_it_and_leaves_nothing_else(tmp_path: Path):
    report = Report(name="n", command="c", options={}, environment={}, result=Result(rows=({"what": "a"},)))
    for _ in range(2):
        registry.write_report(report, tmp_path / "n.json")
    assert [path.name for path in tmp_path.iterdir()] == ["n.json"]
    assert json.loads((tmp_path / "n.json").read_text())["result"]["rows"] == [{"what": "a"}]


@pytest.mark.parametrize(
    ("which", "name", "override", "says"),
    [
        (BENCH, "generate", 'targets=["nope"]', "no targets 'nope'; there are q,v and all-linear"),
        (BENCH, "generate", 'models=["nope"]', "no configuration of 'nope'"),
        (BENCH, "generate", "ranks=[100000]", "bert-base q,v r=100000: "),
        (BENCH, "generate", "device=gpu", "no device 'gpu' here"),
        (BENCH, "generate", "token_dim=100", "multiple of 32"),
        (BENCH, "generate", "models=[]", "at least 1 item"),
        (DEV_BENCH, "heads", "held_out_frac=0", "greater than 0"),
        (DEV_BENCH, "latent", "held_out_frac=2", "less than 1"),
        (DEV_BENCH, "plan", "num_bases=[-1]", "greater than 0"),
        (DEV_BENCH, "growth", "adapters=[]", "at least 1 item"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(which: Benchmarks, name: str, override: str, says: str):
    with pytest.raises(OralError, match=re.escape(says)):
        which.report(name, [override])


@pytest.mark.parametrize(("which", "name"), [(which, name) for which in (BENCH, DEV_BENCH) for name in which.about])
def test_every_benchmark_has_options_with_defaults_and_a_run(which: Benchmarks, name: str):
    module = which.module(name)
    assert build_section(module.Options, []).repetitions >= 1
    assert callable(module.run)


def test_all_are_run_in_turn_with_a_report_each_but_for_those_apart(tmp_path: Path):
    def run(options: Planted) -> Result:
        return Result(rows=({"what": "a", "size": options.size},))

    names = {"one": "", "two": "", "three": ""}
    which = Benchmarks("measure", names, lambda _: SimpleNamespace(Options=Planted, run=run), apart=("two",))
    shown: list[str] = []
    which.run("all", ["size=3"], tmp_path, shown.append)
    assert [text.partition(":")[0] for text in shown] == ["one", "three"]
    assert {path.name for path in tmp_path.iterdir()} == {"one.json", "three.json"}
    assert json.loads((tmp_path / "one.json").read_text())["command"] == "measure one size=3"


def test_all_benchmarks_for_developers_are_those_that_measure():
    assert DEV_BENCH.apart == ("growth",)  # it reads the reports of the others


def test_a_benchmark_for_developers_is_run_from_any_folder(tmp_path: Path):
    folder = Path(__file__).parents[1] / "infra/dev/bench"
    words = [sys.executable, str(folder), "growth", f"folder={tmp_path}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no adapt*.json in"), done.stderr


def test_the_store_benchmark_moves_the_same_adapters_both_ways_and_leaves_nothing(
    s3_objects, monkeypatch: pytest.MonkeyPatch
):
    from oral_ray.objects import S3Objects

    uri = f"s3://{s3_objects.bucket}/bench"
    sizes = ["num_small=3", "small_mb=0.1", "num_large=1", "large_mb=24", "repetitions=1"]
    report = BENCH.report("store", [*sizes, f'uri="{uri}"'])
    assert [row["what"] for row in report.result.rows] == [
        f"{action} {size}" for size in ("3 x 0.1 MB", "1 x 24 MB") for action in ("put", "publish", "pull")
    ]
    for row in report.result.rows:
        assert float(row["ours / raw"]) == pytest.approx(float(row["raw, s"]) / float(row["ours, s"]))  # type: ignore[arg-type]
    assert list(S3Objects(s3_objects.bucket, "").list()) == []
    with pytest.raises(ConfigError, match="give s3://bucket/prefix"):
        BENCH.report("store", ["uri=/tmp/x"])
