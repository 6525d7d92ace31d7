"""A run of what is finished makes no store call twice, and writes nothing but what it says it keeps."""

import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nightly_fixtures import tiny_config

from oral_ray.config import Config
from oral_ray.objects import FileObjects, ReadOnce
from oral_ray.study.quickstart import run_quickstart

CALLS = ("get", "range", "num_bytes", "exists", "put", "put_if_absent", "upload", "download", "list", "delete")


@pytest.fixture
def finished(whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path) -> Iterator[Config]:
    """The configuration of the small store, in which all arms are made; whatever is left to do is done in this process."""
    yield tiny_config(whole_path[0], tiny_bert, f"out={tmp_path / 'out'}")
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Any, ...]]:
    """How often each call was made on a folder, with the same arguments, by whoever opened it in this process."""
    counted: Counter[tuple[Any, ...]] = Counter()

    def counting(name: str) -> Any:
        real = getattr(FileObjects, name)
        names = [*inspect.signature(real).parameters][1:]

        def call(self: FileObjects, *args: Any, **named: Any) -> Any:
            about = tuple(value for key, value in zip(names, args, strict=False) if key not in ("data", "path"))
            counted[name, str(self.root), *about, *named.values()] += 1
            return real(self, *args, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(FileObjects, name, counting(name))
    return counted


def test_a_second_run_makes_no_store_call_twice_and_nothing_anew(
    finished: Config, calls: Counter[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
):
    tasks: list[Any] = []
    monkeypatch.setattr("oral_ray.pipeline.run.run_tasks", lambda calls, *_, **__: tasks.extend(calls) or [])
    before = state(finished)
    printed = run_quickstart(finished)
    of_store = {call: number for call, number in calls.items() if call[1] == finished.store.uri}
    # The probe of the store creates one key twice: that the second create is refused is what it asks.
    twice = {call: number for call, number in of_store.items() if number > 1 and not call[2].startswith("probe/")}
    assert twice == {}
    assert {call[0] for call in of_store} >= {"get", "exists", "list"}, "the calls are seen"
    assert tasks == [] and state(finished) == before
    assert "published tiny-t2 / wordnet/matter" in printed


def state(config: Config) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(config.store.uri).rglob("*") if path.is_file()}


def test_what_is_never_changed_is_read_once_and_what_may_change_every_time(
    objects: FileObjects, calls: Counter[tuple[Any, ...]]
):
    once = ReadOnce(objects)
    for key in ("records/a.json", "current/a.json"):
        assert not once.exists(key) and once.put_if_absent(key, b"1")
        assert [once.get(key), once.get(key)] == [b"1", b"1"]
        assert once.exists(key) and once.exists(key)
    number = {call[2]: number for call, number in calls.items() if call[0] == "get"}
    assert number == {"records/a.json": 1, "current/a.json": 2}
    once.put("records/a.json", b"2")
    assert once.get("records/a.json") == b"2", "what this run writes again is read again"
    once.delete("records/a.json")
    assert not once.exists("records/a.json")


def test_large_objects_are_not_kept_in_memory(objects: FileObjects, calls: Counter[tuple[Any, ...]], tmp_path: Path):
    once = ReadOnce(objects)
    once.put("adapters/a/small", b"1")
    once.put("adapters/a/large", bytes(2 << 20))
    for name in ("small", "large"):
        once.get(f"adapters/a/{name}")
        once.get(f"adapters/a/{name}")
        once.download(f"adapters/a/{name}", tmp_path / name)
    assert (tmp_path / "small").read_bytes() == b"1"
    number = {(call[0], call[2]): number for call, number in calls.items() if call[0] in ("get", "download")}
    assert number == {
        ("get", "adapters/a/small"): 1,
        ("get", "adapters/a/large"): 2,
        ("download", "adapters/a/large"): 1,
    }
