"""`heads`, `latent` and `adapt` on the smallest models: what is compared is alike, what is said is what was done."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dev.bench import adapt, heads, latent

from oral_ray.bench import runs
from oral_ray.config import build_section
from oral_ray.errors import ConfigError

TINY = Path(__file__).with_name("tiny.toml")


def test_heads_learn_the_same_rows_and_are_judged_on_the_same_held_out_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = f"file://{tmp_path}/store"
    manifest = runs.build_corpus(store, runs.Shape(hidden=32, layers=2, r=2, token_dim=32), num_rows=24, num_files=2)
    encoder = SimpleNamespace(text_dim=runs.EMBEDDING, model_dim=runs.EMBEDDING, fingerprint="")
    monkeypatch.setattr(heads, "ConditionEncoder", lambda config: encoder)
    monkeypatch.setattr("oral_ray.pipeline.run.BaseStore", lambda *_: SimpleNamespace(record=lambda base_id: base_id))
    monkeypatch.setattr(heads, "tables_of", lambda *about: (runs.tables(manifest, store), None))
    given: list[Any] = []
    real = heads.TrainingLoop
    monkeypatch.setattr(
        heads, "TrainingLoop", lambda *about, **more: (given.append((about[2](), about[3])), real(*about, **more))[1]
    )
    options = build_section(
        heads.Options,
        [f"store={store}", f"config={TINY}", "steps=4", "repetitions=1", "rpg_steps=3", "held_out_frac=0.3"],
    )
    rows = {str(row["what"]): row for row in heads.run(options).rows}
    assert [row["sampling_steps"] for row in rows.values()] == [2, 1, 3, 2]
    assert all(seen == given[0] for seen in given)  # rows and settings
    assert len(given) == 3
    assert len({row["held_out"] for row in rows.values()}) == 1
    assert 0 < int(rows[heads.OURS]["held_out"] or 0) < 24
    assert rows[heads.REGRESSION]["loss"] is None  # another objective
    assert rows[heads.RPG]["loss"] == rows[f"{heads.RPG} at our number of steps"]["loss"] != rows[heads.OURS]["loss"]
    assert all(float(row["error"] or 0) > 0 and float(row["ns_per_parameter"] or 0) > 0 for row in rows.values())
    assert {row["training_steps"] for row in rows.values()} == {4}


def test_shards_that_are_not_there_are_refused_by_name(tmp_path: Path):
    options = build_section(heads.Options, [f"store=file://{tmp_path}", f"config={TINY}", "shards=nix"])
    with pytest.raises(ConfigError, match=r"no shards nix in .*; there are none"):
        heads.run(options)
    with pytest.raises(ConfigError, match=r"no corpus of one layout in .*; run jobs/shards.py"):
        latent.run(build_section(latent.Options, [f"store=file://{tmp_path}"]))


class _Here:
    """A pool whose process is this one; it is lost where the call is."""

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None: ...
    def submit(self, call: Any, *given: object) -> Any:
        return SimpleNamespace(result=lambda: call(*given))


def test_the_flattened_baseline_and_ours_learn_every_corpus_smallest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = f"file://{tmp_path}/store"
    shapes = [runs.Shape(hidden=32, layers=2, r=r, token_dim=32) for r in (4, 2)]
    manifests = {m.fingerprint: m for m in (runs.build_corpus(store, shape, 24, 2) for shape in shapes)}
    encoder = SimpleNamespace(text_dim=runs.EMBEDDING, model_dim=runs.EMBEDDING, fingerprint="")
    monkeypatch.setattr(heads, "ConditionEncoder", lambda config: encoder)
    monkeypatch.setattr("oral_ray.pipeline.run.BaseStore", lambda *_: SimpleNamespace(record=lambda base_id: base_id))
    monkeypatch.setattr(heads, "tables_of", lambda run, manifest, *_: (runs.tables(manifest, store), None))
    monkeypatch.setattr(latent, "ProcessPoolExecutor", _Here)
    monkeypatch.setattr(latent.resource, "setrlimit", lambda *_: None)
    overrides = [f"store={store}", f"config={TINY}", "steps=3", "held_out_frac=0.3", "num_errors=2", "window_tokens=16"]
    real, windows = heads.TrainingLoop, []
    monkeypatch.setattr(
        heads, "TrainingLoop", lambda *a, **more: (windows.append(a[3].window_tokens), real(*a, **more))[1]
    )
    result = latent.run(build_section(latent.Options, overrides))
    small, large = (layout.num_parameters for m in (*manifests.values(),)[::-1] for layout in m.layouts.values())
    assert [(row["what"], row["parameters"]) for row in result.rows] == [
        (latent.OURS, small), (latent.LATENT, small), (latent.OURS, large), (latent.LATENT, large),
    ]  # fmt: skip
    assert small < large and windows == [16, None, 16, None]
    assert all(row["outcome"] == "done" and float(row["error"] or 0) > 0 for row in result.rows)
    assert [fit.what for fit in result.exponents if "seconds" in fit.what] == [
        "ours: seconds a step", "Cond P-Diff: seconds a step",
    ]  # fmt: skip
    assert len({row["generator_parameters"] for row in result.rows}) == 2
    [name] = [m.fingerprint[:12] for m in (*manifests.values(),)[:1]]
    assert {
        row["shards"] for row in latent.run(build_section(latent.Options, [*overrides, f'shards=["{name}"]'])).rows
    } == {name}
    with pytest.raises(ConfigError, match=rf"no corpus of one layout \['nix'\] in .*; there are .*{name}"):
        latent.run(build_section(latent.Options, [*overrides, f'shards=["{name}", "nix"]']))
    with pytest.raises(ConfigError, match=r"none of the 24 adapters of shards .* is held out; raise held_out_frac"):
        latent.run(build_section(latent.Options, [*overrides, "held_out_frac=1e-6"]))

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(latent, "train_head", out_of_memory)
    rows = latent.run(build_section(latent.Options, overrides)).rows
    assert {row["outcome"] for row in rows} == {"does not fit in 8 GB"}


def test_training_and_generating_are_of_one_kind_of_adapter_and_told_apiece(
    tmp_path: Path, tiny_bert: Path, tiny_llama: Path
):
    config = tmp_path / "config.toml"
    config.write_text(TINY.read_text() + f'\n[condition]\ntext_encoder = "{tiny_bert}"\n')
    overrides = [f"config={config}", f"base={tiny_llama}", "task=wordnet/mind", "batch=4", "repetitions=1"]
    train, one, together, again = adapt.run(build_section(adapt.Options, overrides)).rows
    assert train["what"] == "train, 4 steps of 4, float32"
    assert (train["adapters"], one["adapters"], together["adapters"]) == (1, 1, 4)
    assert train["ratio"] == 1.0
    assert together["each_s"] == pytest.approx(float(together["seconds"] or 0) / 4)
    assert one["ratio"] == pytest.approx(float(train["seconds"] or 0) / float(one["seconds"] or 1))
    assert len({row["parameters"] for row in (train, one, together, again)}) == 1
    assert again["what"] == "train, states below kept"
