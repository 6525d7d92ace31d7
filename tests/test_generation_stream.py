"""Adapters sampled in pieces and written as they come: the same noise, tokens, bytes and digest as in one go."""

from pathlib import Path
from typing import Any

import pytest
import torch
from factory_fixtures import base_of, layout_of, randn, random_factors, shaken_network, small_spec, stats_of
from safetensors.torch import load_file

from oral_ray.adapters.artifact import CONFIG, WEIGHTS, AdapterArtifact, Provenance, build_artifact, read_folder
from oral_ray.adapters.lora import load_strictly
from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.adapters.writer import AdapterWriter
from oral_ray.bases.probes import weight_probes
from oral_ray.config import ConditionConfig, LoraSettings, RegressionObjective, SamplingConfig
from oral_ray.errors import ArtifactError, GeneratorError
from oral_ray.generation import factory as factory_module
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder, ProbeStats
from oral_ray.generator.model import Generator
from oral_ray.generator.pieces import NoiseStream, Piece, sample_pieces
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore

PROVENANCE = Provenance(origin="generated", base="tiny", base_fingerprint="f" * 32)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("cuts", [(5000,), (1, 4999), (1024, 1024, 2952), (17, 1, 3000, 1982), (4999, 1)])
@pytest.mark.parametrize("token_dim", [24, 7, 1])
def test_noise_in_pieces_is_the_noise_of_one_draw(cuts: tuple[int, ...], token_dim: int):
    stream = NoiseStream(rng(), 5000, token_dim)
    pieces = torch.cat([stream.take(count) for count in cuts])
    assert torch.equal(pieces, torch.randn(5000, token_dim, generator=rng()))
    with pytest.raises(ValueError, match="1 tokens were asked for, 0 are left"):
        stream.take(1)


@pytest.mark.parametrize("cuts", [(50,), (1, 1, 48), (16, 16, 18), (33, 17)])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(num_steps=3),
        SamplingConfig(sampler="dpmpp", num_steps=4),
        SamplingConfig(num_steps=2, guidance_text=2.0, guidance_model=1.5),
    ],
)
def test_tokens_in_pieces_are_those_of_the_whole_adapter(cuts: tuple[int, ...], sampling: SamplingConfig):
    network = shaken_network(small_spec())
    position, mask, noise = randn(50, POSITION_DIM), randn(50, 24, seed=1) > -1, randn(50, 24, seed=2)
    text, model = randn(1, 12, seed=3), randn(1, 10, seed=4)
    whole = network.sample(position[None], mask[None], text, model, lambda: noise[None], sampling)[0]
    cut = zip(position.split(cuts), mask.split(cuts), noise.split(cuts), strict=True)
    pieces = torch.cat(list(sample_pieces(network, (Piece(*part) for part in cut), text, model, sampling)))
    assert whole.abs().max() > 0.5
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=1e-4)


def test_the_regression_arm_comes_in_pieces_too():
    network = shaken_network(small_spec(objective=RegressionObjective()))
    position, mask, noise = randn(20, POSITION_DIM), torch.ones(20, 24, dtype=torch.bool), torch.zeros(20, 24)
    text, model, sampling = randn(1, 12), randn(1, 10), SamplingConfig()
    whole = network.sample(position[None], mask[None], text, model, lambda: noise[None], sampling)[0]
    cut = zip(position.split(7), mask.split(7), noise.split(7), strict=True)
    pieces = torch.cat(list(sample_pieces(network, (Piece(*part) for part in cut), text, model, sampling)))
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=1e-4)


def test_a_sampler_that_needs_noise_at_every_step_is_refused():
    network = shaken_network(small_spec())
    with pytest.raises(GeneratorError, match=r"'ddpm' .* use sampling\.sampler=ddim or dpmpp"):
        list(sample_pieces(network, [], randn(1, 12), randn(1, 10), SamplingConfig(sampler="ddpm")))


@pytest.fixture
def maker(tiny_llama: Path, tiny_bert: Path):
    """A factory for tiny-llama adapters, and one condition."""
    encoder = ConditionEncoder(ConditionConfig(text_encoder=str(tiny_bert)))
    spec = small_spec(
        text_dim=encoder.text_dim, model_dim=encoder.model_dim, condition=encoder.config,
        text_encoder_fingerprint=encoder.fingerprint,
    )  # fmt: skip
    generator = Generator(spec, shaken_network(spec), stats_of(layout_of(tiny_llama, 4, ("q", "v", "up"))),
                          ProbeStats({}, {}, {}))  # fmt: skip
    record = base_of(tiny_llama).record
    probes = weight_probes(FileObjects(tiny_llama), "", record.spec, ("q", "v"), 4)
    lora = LoraSettings(r=4, target_modules=("q", "v", "up"))

    def build(**sampling: Any) -> AdapterFactory:
        return AdapterFactory(generator, encoder, SamplingConfig(num_steps=3, **sampling), lambda base: probes)

    return build, Condition("which?", record, lora, seed=3)


def test_an_adapter_that_is_written_is_the_artifact_and_peft_loads_it_strictly(maker, tmp_path: Path, tiny_llama: Path):
    build, condition = maker
    [adapter] = build().generate([condition])
    digest, artifact = adapter.write(tmp_path), adapter.artifact()
    written = load_strictly(base_of(tiny_llama), tmp_path)
    assert not adapter.is_streamed and written.digest == digest == artifact.digest
    assert (written.config, written.provenance) == (artifact.config, artifact.provenance)
    assert adapter.lora == artifact.lora


def test_a_large_adapter_is_streamed_and_has_the_digest_and_the_bytes_of_the_same_adapter_in_memory(
    maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build, condition = maker
    [whole] = build().generate([condition])
    monkeypatch.setattr(factory_module, "PIECE_TOKENS", 20)
    [adapter] = build().generate([condition])
    digest, artifact = adapter.write(tmp_path), adapter.artifact()
    assert adapter.is_streamed and artifact.digest == digest
    assert {name: (tmp_path / name).read_bytes() for name in artifact.files()} == artifact.files()
    for name, tensor in whole.artifact().tensors.items():
        torch.testing.assert_close(artifact.tensors[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_streamed_adapter_is_stored_without_ever_being_whole_in_memory(
    scheme: str, maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    objects = FileObjects(tmp_path) if scheme == "file" else request.getfixturevalue("s3_objects")
    build, condition = maker
    monkeypatch.setattr(factory_module, "PIECE_TOKENS", 20)
    [adapter] = build().generate([condition])
    artifact, store = adapter.artifact(), AdapterStore(objects)
    for way in (SampledAdapter, AdapterArtifact):
        name = "artifact" if way is SampledAdapter else "files"
        monkeypatch.setattr(way, name, lambda self: pytest.fail("it was put together in memory"))
    digest = store.put(adapter)
    monkeypatch.undo()
    assert digest == artifact.digest
    stored = {name: objects.get(f"adapters/{digest}/{name}") for name in artifact.files()}
    assert stored == artifact.files()
    assert store.get(digest).digest == digest


def test_a_streamed_adapter_takes_the_place_of_a_damaged_one(maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build, condition = maker
    monkeypatch.setattr(factory_module, "PIECE_TOKENS", 20)
    objects = FileObjects(tmp_path)
    [adapter] = build().generate([condition])
    store = AdapterStore(objects)
    digest = store.put(adapter)
    key = f"adapters/{digest}/{WEIGHTS}"
    whole = objects.get(key)
    objects.put(key, whole[:-4] + b"\0\0\0\1")
    assert store.put(adapter) == digest and objects.get(key) == whole
    written = objects.path(key).stat().st_mtime_ns
    assert store.put(adapter) == digest and objects.path(key).stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("sampling", "reason"), [({"sampler": "ddpm"}, "'ddpm' .* use sampling.sampler=ddim"), ({}, "")]
)
def test_what_cannot_be_sampled_in_pieces_is_sampled_whole_as_long_as_it_fits_a_batch(
    sampling: dict, reason: str, maker, monkeypatch: pytest.MonkeyPatch
):
    build, condition = maker
    monkeypatch.setattr(factory_module, "PIECE_TOKENS", 20)
    [adapter] = build(**sampling).generate([condition])
    assert adapter.is_streamed == (not reason)
    if reason:
        with pytest.raises(GeneratorError, match=reason):
            build(max_batch_tokens=50, **sampling).generate([condition])


def test_pieces_are_whole_slots_of_bounded_size(tiny_llama: Path):
    layout = layout_of(tiny_llama, 4, ("q", "v", "up"))
    groups = list(factory_module._groups(layout, 20))
    assert [slot for group in groups for slot in group] == list(layout.slots)
    sizes = [sum(4 * slot.chunks for slot in group) for group in groups]
    assert len(groups) > 2
    assert all(size <= 20 or len(group) == 1 for size, group in zip(sizes, groups, strict=True))


def test_tensors_written_in_any_order_make_the_file_that_safetensors_writes(tmp_path: Path, tiny_llama: Path):
    layout = layout_of(tiny_llama, 2)
    factors = random_factors(layout, 0)
    artifact = build_artifact(factors, layout, PROVENANCE)
    with AdapterWriter(tmp_path, layout, PROVENANCE) as writer:
        for slot in reversed(layout.slots):
            a, b = factors[slot.module]
            writer.write(slot, a if slot.factor == "A" else b.T)
    assert writer.digest == artifact.digest == read_folder(tmp_path).digest
    for name, data in artifact.files().items():
        assert (tmp_path / name).read_bytes() == data
    assert load_file(tmp_path / WEIGHTS).keys() == artifact.tensors.keys()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("missing", "1 tensors were not written"), ("nan", "not finite"), ("shape", "its layout needs")],
)
def test_an_adapter_that_is_not_whole_gets_no_commit_marker(fault: str, reason: str, tmp_path: Path, tiny_llama: Path):
    layout = layout_of(tiny_llama, 2)
    (tmp_path / CONFIG).write_text("that of an older adapter")

    def write() -> None:
        with AdapterWriter(tmp_path, layout, PROVENANCE) as writer:
            for slot in layout.slots[fault == "missing" :]:
                rows = torch.zeros(2, slot.width + (fault == "shape"))
                writer.write(slot, rows / 0 if fault == "nan" else rows)

    with pytest.raises(ArtifactError, match=reason):
        write()
    assert not (tmp_path / CONFIG).exists()
