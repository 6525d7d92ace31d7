"""The benchmark `growth`: arithmetic on reports of the other benchmarks and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from dev.bench import growth

from oral_ray.config import build_section
from oral_ray.errors import ConfigError


def write(folder: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    report = {"result": {"rows": rows, **more.pop("result", {})}, **more}
    (folder / f"{name}.json").write_text(json.dumps(report))


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    each_s = {"train, 60 steps": 90.0, "generate one": 0.2, "generate 32 together": 0.036, "train, states kept": 36.0}
    write(tmp_path, "adapt", [{"what": what, "each_s": s, "parameters": 1000} for what, s in each_s.items()])
    write(tmp_path, "train", [{"what": "torch, 1 worker", "tokens_per_s": 50.0}], options={"shape": {"token_dim": 20}})
    rates = {"64 adapters, Ray Data": 1.0, "256 adapters, Ray Data": 4.0, "rows of a batch, from memory": 9000.0}
    write(tmp_path, "data", [{"what": what, "mb_per_s": rate} for what, rate in rates.items()])
    sizes = [1e5, 1e6, 1e7]
    layouts = [{"parameters": n, "seconds": 1e-6 * n, "peak_mb": 7.0, "generator_parameters": 250_000} for n in sizes]
    write(tmp_path, "generate-a", [*layouts, {"parameters": 1e9}])  # the last one was too large to be timed
    return tmp_path


def run(folder: Path, *overrides: str) -> Any:
    return growth.run(build_section(growth.Options, [f"folder={folder}", *overrides]))


def test_hours_bytes_and_requests_are_products_of_measured_rates(reports: Path):
    overrides = ("adapters=[1000,10000]", "bases=[10,10000]", "gpus=[8,512]", "epochs=10", "tasks=20", "batch_size=512")
    result = run(reports, *overrides, "hours=10")
    corpus, _, night, later, small, large = result.rows
    assert corpus["train_h"] == pytest.approx(10.0)  # 1000 adapters of 36 s
    assert corpus["read_h"] == pytest.approx(1.0 / 3600)  # 4 MB at the best of the measured passes with Ray Data
    assert corpus["learn_h"] == pytest.approx(10 * 1000 * 1000 / (50 * 20) / 3600)
    assert corpus["gives_out_first"] == "train_h"
    assert corpus["requests"] % 1000 == 0
    assert night["generate_h"] == pytest.approx(200 * 0.036 / 3600)
    assert night["train_h"] == pytest.approx(2.0)
    assert int(later["requests_nothing_new"]) > int(night["requests_nothing_new"]) > 0
    assert int(later["requests"]) > 900 * int(night["requests"])
    assert (small["gpu_h"], large["gpu_h"]) == (80.0, 5120.0)
    assert small["adapters_per_gpu_s"] == pytest.approx(10 * 10_000 / 36_000 / 8)
    assert (small["gives_out_first"], large["gives_out_first"]) == ("-", "batch_per_gpu")


def test_exponents_are_those_of_all_timed_layouts(reports: Path):
    seconds, memory = run(reports, "adapters=[10]", "bases=[10]", "gpus=[1]").exponents
    assert (seconds.num_points, seconds.x_range) == (3, (1e5, 1e7))
    assert seconds.exponent == pytest.approx(1.0)
    assert memory.exponent == pytest.approx(0.0, abs=1e-9)


COMMANDS = {
    "generate": "oral-ray bench",
    "train": "oral-ray bench",
    "adapt": "python infra/dev/bench",
    "data": "python infra/dev/bench",
}


@pytest.mark.parametrize("name", ["adapt", "train", "data", "generate"])
def test_a_report_that_is_missing_is_named_with_the_command_that_makes_it(reports: Path, name: str):
    for path in reports.glob(f"{name}*.json"):
        path.unlink()
    with pytest.raises(ConfigError, match=rf"no {name}\*\.json in .*run `{COMMANDS[name]} {name} --json"):
        run(reports)


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("adapt", ""),
        ("adapt", {"result": {"rows": []}}),
        ("adapt", {"result": {"rows": [{"what": "train", "each_s": -1.0, "parameters": 10}]}}),
        ("train", '{"result": {"rows"'),
        ("train", {"result": {"rows": [{"what": "zero-2, 1 worker"}]}}),
        ("data", []),
        ("data", {"result": {"rows": [{"what": "4 adapters, Ray Data", "mb_per_s": 0.0}]}}),
        ("generate-a", {"result": {"rows": [{"parameters": 10.0}]}}),
    ],
)
def test_a_damaged_report_is_named_with_the_command_that_makes_it(reports: Path, name: str, report: Any):
    kind = name.removesuffix("-a")
    (reports / f"{name}.json").write_text(report if isinstance(report, str) else json.dumps(report))
    with pytest.raises(
        ConfigError, match=rf"{name}\.json is no whole report of .*make it again: {COMMANDS[kind]} {kind} "
    ):
        run(reports)


def test_reports_of_several_machines_are_not_mixed(reports: Path):
    for path in list(reports.glob("*.json")):
        path.rename(path.with_name(f"{path.stem}-slow.json"))
    write(reports, "data-h100", [{"what": "64 adapters, Ray Data", "mb_per_s": 8.0}])
    with pytest.raises(ConfigError, match=r"2 reports of data in .*data-h100\.json, data-slow\.json; say machine=WORD"):
        run(reports)
    assert run(reports, "machine=slow", "adapters=[1000]").rows[0]["read_h"] == pytest.approx(1.0 / 3600)


def test_the_reports_of_the_repository_are_one_of_each_kind():
    growth.Rates(Path(__file__).parents[1] / "docs/results/bench")
