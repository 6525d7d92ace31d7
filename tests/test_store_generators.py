"""Generators in the store: what is put is what is got, damage is found, and the current one is named append-only."""

import dataclasses
from pathlib import Path

import pytest
import torch

from oral_ray.adapters.tokens import TokenStats
from oral_ray.config import ConditionConfig, GeneratorConfig, MlpDenoiserConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator.condition import ProbeStats
from oral_ray.generator.model import Generator, build_network, save_generator
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.objects import FileObjects, ReadCache
from oral_ray.store.generators import (
    current_generator,
    generator_lineage,
    generator_manifest,
    get_generator,
    promote_generator,
    put_generator,
    read_metrics,
)


def tiny_generator(seed: int = 0) -> Generator:
    sizes = GeneratorConfig(
        width=16,
        num_layers=1,
        state_dim=8,
        head_dim=8,
        chunk_size=4,
        denoiser=MlpDenoiserConfig(width=16, num_blocks=1),
    )
    spec = GeneratorSpec(
        generator=sizes, condition=ConditionConfig(), token_dim=8, text_dim=4, model_dim=6,
        text_encoder_fingerprint="t", architectures=("arch",), recipe="r",
    )  # fmt: skip
    scales = {("q", "A"): ((0.0, 1.0), (1.0, 2.0)), ("q", "B"): ((0.0, 0.5),)}
    probes = ProbeStats({"arch": torch.ones(3)}, {"arch": torch.eye(3)[:, :2]}, {"arch": torch.ones(2)})
    return Generator(spec, build_network(spec, seed).eval(), TokenStats(scales, {"layout": torch.ones(2, 8)}), probes)


@pytest.fixture
def stored(objects: FileObjects, tmp_path: Path) -> FileObjects:
    """A store with one generator under the recipe `r1`."""
    save_generator(tiny_generator(), tmp_path / "made")
    put_generator(objects, "r1", tmp_path / "made")
    return objects


def key_of(objects: FileObjects, name: str) -> str:
    (key,) = (info.key for info in objects.list("generators/r1/") if info.key.endswith(f"/{name}"))
    return key


def test_a_generator_comes_back_as_it_was_put(stored: FileObjects):
    made, found = tiny_generator(), get_generator(stored, "r1")
    assert found.spec == made.spec
    assert found.token_stats.scales == made.token_stats.scales
    assert not found.network.training
    pairs = [(found.network.state_dict(), made.network.state_dict()), (found.token_stats.means, made.token_stats.means)]
    for field in dataclasses.fields(ProbeStats):
        pairs.append((getattr(found.probe_stats, field.name), getattr(made.probe_stats, field.name)))
    for got, put in pairs:
        assert got.keys() == put.keys()
        assert all(torch.equal(got[name], put[name]) for name in put)


def test_a_generator_without_its_manifest_is_not_there(stored: FileObjects):
    stored.delete("generators/r1/manifest.json")
    assert generator_manifest(stored, "r1") is None
    with pytest.raises(GeneratorError, match=r"no generator r1 in file://.*; run jobs/train.py"):
        get_generator(stored, "r1")


@pytest.mark.parametrize("name", ["generator.safetensors", "generator.json"])
def test_a_changed_byte_of_a_generator_is_found(stored: FileObjects, name: str):
    data = bytearray(stored.get(key_of(stored, name)))
    data[-3] ^= 1
    stored.put(key_of(stored, name), bytes(data))
    with pytest.raises(GeneratorError, match=f"generators/r1/.*/{name} in file://.* is damaged; delete its folder"):
        get_generator(stored, "r1")


@pytest.mark.parametrize("name", ["generator.safetensors", "generator.json"])
def test_a_lost_file_of_a_generator_is_named(stored: FileObjects, name: str):
    stored.delete(key_of(stored, name))
    with pytest.raises(GeneratorError, match=f"{name} in file:.* is lost; .*train it again"):
        get_generator(stored, "r1")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"files": 3}', b"{}"])
def test_a_damaged_manifest_is_an_error_that_names_it(stored: FileObjects, data: bytes):
    stored.put("generators/r1/manifest.json", data)
    with pytest.raises(GeneratorError, match=r"generators/r1/manifest.json in file://.* is damaged"):
        get_generator(stored, "r1")


def test_the_current_generator_of_a_name_is_the_last_promoted_one(objects: FileObjects):
    assert current_generator(objects, "run") is None
    for recipe in ("a", "b", "b", "a"):
        promote_generator(objects, "run", recipe)
        assert current_generator(objects, "run") == recipe
    assert current_generator(objects, "other") is None
    assert len(list(objects.list("current/run/"))) == 3  # nothing is overwritten, a repeated promotion adds nothing


@pytest.mark.parametrize("data", [b"", b"{}", b"[]"])
def test_a_damaged_promotion_is_an_error_that_names_it(objects: FileObjects, data: bytes):
    promote_generator(objects, "run", "a")
    objects.put("current/run/00000001.json", data)
    with pytest.raises(GeneratorError, match=r"current/run/00000001.json in file://.* is damaged; delete it"):
        current_generator(objects, "run")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100)])
def test_a_damaged_training_log_is_an_error_that_names_it(objects: FileObjects, tmp_path: Path, data: bytes):
    save_generator(tiny_generator(), tmp_path / "made")
    (tmp_path / "made" / "metrics.parquet").write_bytes(data)
    put_generator(objects, "r1", tmp_path / "made")
    with pytest.raises(GeneratorError, match=r"generators/r1/.*/metrics.parquet in file://.* is damaged"):
        read_metrics(objects, "r1")


def test_a_generator_without_a_training_log_has_an_empty_one(stored: FileObjects):
    assert read_metrics(stored, "r1") == []


def test_a_second_run_of_a_recipe_that_ends_later_changes_nothing(stored: FileObjects, tmp_path: Path):
    save_generator(tiny_generator(seed=1), tmp_path / "other")
    put_generator(stored, "r1", tmp_path / "other")
    found, first = get_generator(stored, "r1").network.state_dict(), tiny_generator().network.state_dict()
    assert all(torch.equal(found[name], first[name]) for name in first)


def test_a_promotion_after_a_deleted_one_ends(objects: FileObjects):
    for recipe in ("a", "b", "c"):
        promote_generator(objects, "run", recipe)
    objects.delete("current/run/00000002.json")
    promote_generator(objects, "run", "d")
    assert current_generator(objects, "run") == "d"


def test_a_generator_that_was_read_is_kept_and_a_damaged_copy_is_read_again(stored: FileObjects, tmp_path: Path):
    stored.cache = ReadCache(tmp_path / "cache", 10**9)
    get_generator(stored, "r1")
    lost = stored.get(key_of(stored, "generator.safetensors"))
    stored.put(key_of(stored, "generator.safetensors"), b"")
    assert get_generator(stored, "r1").spec == tiny_generator().spec
    stored.put(key_of(stored, "generator.safetensors"), lost)
    (kept,) = (tmp_path / "cache").glob("*/generator.safetensors")
    kept.write_bytes(lost[:-4] + b"\x00\x00\x80\x7f")  # a value that would load
    found, made = (g.network.state_dict() for g in (get_generator(stored, "r1"), tiny_generator()))
    assert all(torch.equal(found[name], made[name]) for name in made)
    assert kept.read_bytes() == lost


def test_what_a_generator_is_stands_in_its_lineage(objects: FileObjects, tmp_path: Path):
    for recipe, seed in (("r1", 0), ("r2", 1)):
        save_generator(tiny_generator(seed), tmp_path / recipe)
        put_generator(objects, recipe, tmp_path / recipe, corpus=f"shards of {recipe}")
    one, two = (generator_lineage(objects, recipe) for recipe in ("r1", "r2"))
    assert (one.recipe, one.corpus, two.corpus) == ("r1", "shards of r1", "shards of r2")
    assert one.digest != two.digest
