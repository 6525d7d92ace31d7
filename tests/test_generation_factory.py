"""AdapterFactory: the one path from a condition and a seed to an artifact."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factory_fixtures import base_of, layout_of, shaken_network, small_spec, stats_of
from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.lora import attached, load_strictly
from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.probes import weight_probes
from oral_ray.config import ConditionConfig, LoraSettings, RegressionObjective, SamplingConfig, canonical_json
from oral_ray.errors import ConditionError, GeneratorError, LayoutError
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder, fit_probe_stats
from oral_ray.generator.model import Generator
from oral_ray.objects import FileObjects
from oral_ray.version import code_version

PROMPTS = ("Classify a text as animal or plant.", "Which metal is it?", "Is the stone cold or warm?")


@pytest.fixture
def encoder(tiny_bert: Path) -> ConditionEncoder:
    return ConditionEncoder(ConditionConfig(text_encoder=str(tiny_bert)))


@pytest.fixture
def generator(encoder: ConditionEncoder, tiny_bert: Path, tiny_llama: Path) -> Generator:
    """A network that answers every condition differently, over two architectures and two ranks."""
    spec = small_spec(
        text_dim=encoder.text_dim, model_dim=encoder.model_dim, condition=encoder.config,
        text_encoder_fingerprint=encoder.fingerprint,
    )  # fmt: skip
    seen = [
        (base_of(folder).record.spec.digest, {name: probe * scale for name, probe in probes_in(folder).items()})
        for folder in (tiny_bert, tiny_llama)
        for scale in (1.0, 0.8, 1.3)
    ]
    stats = stats_of(layout_of(tiny_bert, 2), layout_of(tiny_llama, 4, ("q", "v", "up")))
    return Generator(spec, shaken_network(spec), stats, fit_probe_stats(seen, 4))


Open = Callable[..., AdapterFactory]
"""A factory with the probes of the two bases; options are those of the sampling."""


@pytest.fixture
def open_factory(generator: Generator, encoder: ConditionEncoder, tiny_bert: Path, tiny_llama: Path) -> Open:
    probes = {base_of(folder).record.fingerprint: probes_in(folder) for folder in (tiny_bert, tiny_llama)}

    def open_it(num_steps: int = 3, **sampling: Any) -> AdapterFactory:
        settings = SamplingConfig(num_steps=num_steps, **sampling)
        return AdapterFactory(
            generator, encoder, settings, lambda base: probes.get(base.fingerprint) or probes_in(tiny_bert)
        )

    return open_it


@pytest.fixture
def factory(open_factory: Open) -> AdapterFactory:
    return open_factory()


def probes_in(folder: Path) -> dict[str, Tensor]:
    return weight_probes(FileObjects(folder), "", base_of(folder).record.spec, ("q", "v"), 4)


def condition(
    folder: Path, prompt: str = PROMPTS[0], r: int = 2, targets: tuple[str, ...] = ("q", "v"), seed: int = 0
) -> Condition:
    return Condition(prompt, base_of(folder).record, LoraSettings(r=r, target_modules=targets), seed)


def mixed(tiny_bert: Path, tiny_llama: Path) -> list[Condition]:
    return [
        condition(tiny_bert),
        condition(tiny_llama, PROMPTS[1], 4, ("q", "v", "up"), seed=1),
        condition(tiny_bert, PROMPTS[2], 4, seed=2),
        condition(tiny_llama, PROMPTS[0], seed=3),
        condition(tiny_bert, PROMPTS[1]),
    ]


def made(factory: AdapterFactory, *conditions: Condition) -> list[AdapterArtifact]:
    return [adapter.artifact() for adapter in factory.generate(conditions)]


def close(left: AdapterArtifact, right: AdapterArtifact) -> bool:
    return left.tensors.keys() == right.tensors.keys() and all(
        torch.allclose(left.tensors[name], right.tensors[name], atol=1e-5) for name in left.tensors
    )


def test_same_seed_gives_the_same_digest_twice(
    factory: AdapterFactory, open_factory: Open, tiny_bert: Path, tiny_llama: Path
) -> None:
    conditions = mixed(tiny_bert, tiny_llama)
    first = [artifact.digest for artifact in made(factory, *conditions)]
    torch.manual_seed(99)  # the global stream must not matter
    again = made(open_factory(), *conditions)
    assert [artifact.digest for artifact in again] == first and len(set(first)) == len(first)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_seed_prompt_base_and_rank_each_change_the_adapter(
    open_factory: Open, tiny_bert: Path, tiny_llama: Path, sampler: str
) -> None:
    factory = open_factory(num_steps=2, sampler=sampler)
    [first] = made(factory, condition(tiny_bert))
    [other_seed] = made(factory, condition(tiny_bert, seed=1))
    [other_prompt] = made(factory, condition(tiny_bert, PROMPTS[1]))
    assert not close(first, other_seed) and not close(first, other_prompt)
    assert first.tensors.keys() != made(factory, condition(tiny_llama))[0].tensors.keys()
    assert made(factory, condition(tiny_bert, r=4))[0].lora.r == 4


def test_another_version_of_a_base_gets_another_adapter(
    factory: AdapterFactory, generator: Generator, encoder: ConditionEncoder, tiny_bert: Path
) -> None:
    one = condition(tiny_bert)
    newer = dataclasses.replace(one, base=one.base.model_copy(update={"fingerprint": "0" * 32}))
    changed = {name: 1.2 * probe for name, probe in probes_in(tiny_bert).items()}
    other = AdapterFactory(generator, encoder, factory.sampling, lambda base: changed)
    [first] = made(factory, one)
    assert not close(first, made(other, newer)[0])
    assert not close(first, made(other, one)[0])  # the probes alone make a difference, with the noise equal


def test_the_probes_of_a_base_are_read_once(generator: Generator, encoder: ConditionEncoder, tiny_bert: Path) -> None:
    read: list[str] = []

    def probes_of(base: BaseRecord) -> dict[str, Tensor]:
        read.append(base.id)
        return probes_in(tiny_bert)

    factory = AdapterFactory(generator, encoder, SamplingConfig(num_steps=1), probes_of)
    for seed in range(2):
        factory.generate([condition(tiny_bert, seed=seed), condition(tiny_bert, PROMPTS[1], seed=seed)])
    assert len(read) == 1


@pytest.mark.parametrize(("batch_size", "max_batch_tokens"), [(1, 65536), (2, 65536), (64, 200), (64, 1)])
def test_order_and_batch_size_change_no_adapter(
    factory: AdapterFactory, open_factory: Open, tiny_bert: Path, tiny_llama: Path,
    batch_size: int, max_batch_tokens: int,
) -> None:  # fmt: skip
    conditions = mixed(tiny_bert, tiny_llama)
    wanted = made(factory, *conditions)
    found = made(open_factory(batch_size=batch_size, max_batch_tokens=max_batch_tokens), *conditions[::-1])[::-1]
    for left, right, asked in zip(wanted, found, conditions, strict=True):
        assert close(left, right) and right.provenance.prompt == asked.prompt
        assert right.provenance.base_fingerprint == asked.base.fingerprint


def test_batches_stay_within_their_limits(
    generator: Generator, open_factory: Open, tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = mixed(tiny_bert, tiny_llama)
    sizes: list[tuple[int, int]] = []
    sample = generator.network.sample

    def spy(position_BLP, *rest):
        sizes.append(tuple(position_BLP.shape[:2]))
        return sample(position_BLP, *rest)

    monkeypatch.setattr(generator.network, "sample", spy)
    open_factory(num_steps=1, max_batch_tokens=150).generate(conditions)
    assert sum(num for num, _ in sizes) == len(conditions) and 1 < len(sizes) < len(conditions)
    assert all(num * longest <= 150 for num, longest in sizes)
    sizes.clear()
    open_factory(num_steps=1, batch_size=2).generate(conditions)
    assert sorted(num for num, _ in sizes) == [1, 2, 2]


def test_one_seed_draws_other_noise_for_every_prompt_and_base_version(
    factory: AdapterFactory, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def spy(position, mask, text, model, draw_noise, sampling):
        drawn.append(draw_noise())
        return drawn[-1]

    monkeypatch.setattr(factory.generator.network, "sample", spy)
    one = condition(tiny_bert)
    newer = dataclasses.replace(one, base=one.base.model_copy(update={"fingerprint": "0" * 32}))
    factory.generate([one, condition(tiny_bert, PROMPTS[1]), newer, condition(tiny_bert, seed=1)])
    rows = drawn[0]
    assert len(rows) == 4 and not any(torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))


def test_provenance_is_complete(factory: AdapterFactory, tiny_bert: Path) -> None:
    asked = dataclasses.replace(condition(tiny_bert, seed=7), scale=0.5)
    provenance = factory.generate([asked])[0].provenance
    assert (provenance.origin, provenance.task, provenance.seed) == ("generated", "", 7)
    assert provenance.prompt == PROMPTS[0] and provenance.code_version == code_version()
    assert (provenance.base, provenance.base_fingerprint) == (asked.base.id, asked.base.fingerprint)
    assert provenance.generator == "recipe-of-a-test" and provenance.scale == 0.5
    assert json.loads(canonical_json(provenance))["strength"] == 0.5  # as it is stored
    assert SamplingConfig.model_validate_json(provenance.sampling).num_steps == factory.sampling.num_steps


@pytest.mark.parametrize("max_batch_tokens", [65536, 1])
def test_a_scale_multiplies_b_and_nothing_else(open_factory: Open, tiny_bert: Path, max_batch_tokens: int) -> None:
    factory, asked = open_factory(max_batch_tokens=max_batch_tokens), condition(tiny_bert)
    plain, doubled = made(factory, asked)[0], made(factory, dataclasses.replace(asked, scale=2.0))[0]
    for name, tensor in plain.tensors.items():
        assert torch.equal(doubled.tensors[name], 2.0 * tensor if ".lora_B." in name else tensor)


def test_equal_content_has_one_provenance_however_many_are_sampled_at_once(open_factory: Open, tiny_bert: Path) -> None:
    asked = [condition(tiny_bert, seed=7), condition(tiny_bert, PROMPTS[1], seed=7)]
    alone, together = (made(open_factory(batch_size=size), *asked) for size in (1, 64))
    assert [a.files()["provenance.json"] for a in alone] == [a.files()["provenance.json"] for a in together]


def test_what_a_regression_gives_is_said_to_come_from_one(
    generator: Generator, encoder: ConditionEncoder, tiny_bert: Path
) -> None:
    settings = generator.spec.generator.model_copy(update={"objective": RegressionObjective()})
    spec = generator.spec.model_copy(update={"generator": settings})
    other = dataclasses.replace(generator, spec=spec)
    factory = AdapterFactory(other, encoder, SamplingConfig(num_steps=3), lambda base: probes_in(tiny_bert))
    [adapter] = factory.generate([condition(tiny_bert)])
    assert adapter.provenance.origin == "regression"


def test_a_generated_adapter_loads_in_peft_and_changes_the_base(
    factory: AdapterFactory, tiny_llama: Path, tmp_path: Path
) -> None:
    [artifact] = made(factory, condition(tiny_llama, r=4, targets=("q", "v", "up")))
    for name, data in artifact.files().items():
        (tmp_path / name).write_bytes(data)
    base = base_of(tiny_llama)
    assert load_strictly(base, tmp_path).digest == artifact.digest
    ids = torch.arange(4, 12)[None]
    with torch.no_grad(), attached(base, artifact) as model:
        changed = model(input_ids=ids).logits
    with torch.no_grad():
        assert not torch.allclose(changed, base.model(input_ids=ids).logits, atol=1e-3)


def test_a_layout_the_corpus_never_had_is_generated_too(factory: AdapterFactory, tiny_bert: Path) -> None:
    layout = layout_of(tiny_bert, 3, ("v",))
    assert layout.digest not in factory.generator.token_stats.means
    [artifact] = made(factory, condition(tiny_bert, r=3, targets=("v",)))
    artifact.check(layout)


def test_a_role_the_corpus_never_had_is_refused_by_name(factory: AdapterFactory, tiny_bert: Path) -> None:
    with pytest.raises(LayoutError, match=r"'down'.*knows q, up, v"):
        factory.generate([condition(tiny_bert, targets=("down",))])


def test_another_text_encoder_is_refused_with_both_fingerprints(generator: Generator, tiny_bert: Path) -> None:
    other = ConditionEncoder(ConditionConfig())
    wanted, given = generator.spec.text_encoder_fingerprint, other.fingerprint
    assert wanted != given
    with pytest.raises(GeneratorError, match=f"{wanted}, this one is {given}.*condition.text_encoder"):
        AdapterFactory(generator, other, SamplingConfig(), lambda base: {})


def test_a_bad_prompt_never_reaches_the_network(tiny_bert: Path) -> None:
    with pytest.raises(ConditionError, match="prompt is empty"):
        condition(tiny_bert, "")


def test_nothing_asked_is_nothing_made(factory: AdapterFactory) -> None:
    assert factory.generate([]) == []
