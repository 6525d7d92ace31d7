"""Conditions: prompts, weight probes of base versions, the random ablations."""

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from factory_fixtures import base_of, randn
from safetensors.torch import load_file, save_file
from torch import Tensor

from oral_ray.bases.catalog import BaseRecord, describe_base
from oral_ray.bases.probes import weight_probes
from oral_ray.config import ConditionConfig, LoraSettings
from oral_ray.errors import ConditionError
from oral_ray.generation.condition import Condition
from oral_ray.generator.condition import (
    MAX_PROMPT_CHARS,
    ConditionEncoder,
    ProbeStats,
    check_prompt,
    fit_probe_stats,
)
from oral_ray.modalities.encoder import embed
from oral_ray.objects import FileObjects

Version = tuple[BaseRecord, dict[str, Tensor]]


@pytest.fixture(scope="module")
def minilm() -> ConditionEncoder:
    """The real text encoder, from an installed package."""
    return ConditionEncoder(ConditionConfig())


@pytest.fixture
def encoder(tiny_bert: Path) -> ConditionEncoder:
    return ConditionEncoder(ConditionConfig(text_encoder=str(tiny_bert)))


@pytest.fixture(scope="module")
def versions(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """Four versions of one architecture: query and value weights drift in a fixed direction."""
    made = []
    for i in range(4):
        folder = tmp_path_factory.mktemp("versions") / f"t{i}"
        shutil.copytree(tiny_bert, folder)
        tensors = load_file(folder / "model.safetensors")
        for j, name in enumerate(sorted(tensors)):
            if "query.weight" in name or "value.weight" in name:
                tensors[name] = tensors[name] + 0.01 * i * randn(*tensors[name].shape, seed=j)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        objects = FileObjects(folder)
        record = describe_base(objects, "", f"t{i}")
        made.append((record, weight_probes(objects, "", record.spec, ("q", "v"), 4)))
    return made


def stats_of(versions: list[Version], num_components: int = 4) -> ProbeStats:
    return fit_probe_stats([(record.spec.digest, probes) for record, probes in versions], num_components)


def condition(prompt: str, record: BaseRecord) -> Condition:
    return Condition(prompt, record, LoraSettings())


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused_with_an_example(prompt: str) -> None:
    with pytest.raises(ConditionError, match=r"prompt is empty.*classify"):
        check_prompt(prompt)


INVISIBLE = {
    "\u200b": "U+200B zero width space", "\ufeff": "U+FEFF zero width no-break space", "\u202e": "U+202E right-to-left",
    "\u2800": "U+2800 braille pattern blank", "\u3164 ": "U+3164 hangul filler", "\uffa0": "U+FFA0",
    "\u115f\u1160": "U+1160", "\u0378": "U+0378 without a name", "\ue000": "U+E000", "\x00\x1b": "U+001B",
    "\u034f": "U+034F", "\ufe0f": "U+FE0F", "\U000e0041": "U+E0041 tag latin", "\u0301": "U+0301 combining acute",
    "\u180e\u2060\u200d\u00ad\u061c": "and 1 more",
}  # fmt: skip


@pytest.mark.parametrize("prompt", INVISIBLE)
def test_a_prompt_that_shows_nothing_is_refused_with_its_code_points(prompt: str) -> None:
    with pytest.raises(ConditionError, match=r"characters that show nothing.*describe the task") as caught:
        check_prompt(prompt)
    assert INVISIBLE[prompt] in str(caught.value) and str(caught.value).isascii()


@pytest.mark.parametrize("prompt", ["\u200bx", "\u05e9\u200f", "\U0001f600", "?", "e\u0301", "\u2801", "\uac00", "7"])
def test_a_prompt_with_one_visible_character_is_taken(prompt: str) -> None:
    assert check_prompt(prompt) == prompt


def test_a_prompt_of_a_megabyte_is_refused_with_its_length(tiny_bert: Path) -> None:
    with pytest.raises(ConditionError, match=rf"1000000 characters, at most {MAX_PROMPT_CHARS}") as caught:
        condition("a" * 1_000_000, base_of(tiny_bert).record)
    assert len(str(caught.value)) < 300
    assert check_prompt("a" * MAX_PROMPT_CHARS) == "a" * MAX_PROMPT_CHARS


@pytest.mark.parametrize("prompt", [None, 7, b"classify", ["classify"], "sort \ud800 mails"])
def test_a_prompt_that_is_no_text_is_refused_with_its_value(prompt: object) -> None:
    with pytest.raises(ConditionError, match="prompt"):
        check_prompt(prompt)  # type: ignore[arg-type]


def test_a_condition_refuses_a_bad_prompt_at_once(tiny_bert: Path) -> None:
    with pytest.raises(ConditionError, match="empty"):
        condition(" ", base_of(tiny_bert).record)
    assert condition("Sort mails.", base_of(tiny_bert).record).prompt == "Sort mails."


@pytest.mark.parametrize("prompt", ["日本語のメールを分類する", "🙂🙃", "a\x00b", "x" * MAX_PROMPT_CHARS, "?!"])
def test_any_text_can_be_a_prompt(encoder: ConditionEncoder, prompt: str) -> None:
    embedded = encoder.encode_prompts([prompt])
    assert embedded.shape == (1, encoder.text_dim) and torch.isfinite(embedded).all()


def test_embeddings_are_of_order_one_and_do_not_depend_on_the_batch(encoder: ConditionEncoder) -> None:
    prompts = ["Classify a text as animal or plant.", "dog", "Which metal?"]
    together = encoder.encode_prompts(prompts)
    alone = torch.cat([encoder.encode_prompts([prompt]) for prompt in reversed(prompts)]).flip(0)
    assert torch.equal(together, alone)
    assert torch.allclose(together.square().mean(1), torch.ones(3), atol=1e-4)


def test_prompts_embedded_together_are_those_embedded_alone_up_to_rounding(minilm: ConditionEncoder) -> None:
    prompts = ["dog", "Classify a text as animal or plant, as well as you can.", "dog", "Which metal?"]
    alone = minilm.encode_prompts(prompts)
    fresh = ConditionEncoder(minilm.config)
    with patch("oral_ray.generator.condition.embed", wraps=embed) as embedded:
        together = fresh.encode_prompts(prompts, batch_size=2)
        assert torch.equal(fresh.encode_prompts(prompts[::-1]), together.flip(0))  # remembered
    assert embedded.call_count == 2  # three texts, two at a time
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_encoder_forgets_the_oldest_of_many_prompts(
    encoder: ConditionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oral_ray.generator.condition.MAX_KNOWN", 3)
    first = encoder.encode_prompts(["one", "two", "three", "four", "five"], batch_size=8)
    with patch("oral_ray.generator.condition.embed", wraps=embed) as embedded:
        encoder.encode_prompts(["three", "four", "five"])
        assert embedded.call_count == 0
        assert torch.allclose(encoder.encode_prompts(["one"])[0], first[0], atol=1e-5)
        assert embedded.call_count == 1


def test_real_text_encoder_puts_wordings_of_one_task_together(minilm: ConditionEncoder) -> None:
    rows = torch.nn.functional.normalize(
        minilm.encode_prompts(
            [
                "Decide whether a mail is spam or not.",
                "Tell spam mails from wanted ones.",
                "Classify a review as positive or negative.",
            ]
        )
    )
    near, far = float(rows[0] @ rows[1]), float(rows[0] @ rows[2])
    assert near > far + 0.2


def test_prompts_that_differ_only_past_the_first_words_still_differ(minilm: ConditionEncoder) -> None:
    start = "Read the text below with care, think of what it says, and decide which label is right for it: " * 4
    first, second = minilm.encode_prompts([start + "metal or stone", start + "happy or sad"])
    assert (first - second).abs().max() > 1e-2


def test_probes_distinguish_two_versions_where_metadata_does_not(
    tiny_bert: Path, encoder: ConditionEncoder, versions: list[Version]
) -> None:
    metadata = ConditionEncoder(ConditionConfig(text_encoder=str(tiny_bert), model="metadata"))
    stats = stats_of(versions)
    seen, blind = ([e.encode_base(*version, stats) for version in versions] for e in (encoder, metadata))
    assert all(row.shape == (encoder.model_dim,) for row in (*seen, *blind))
    for i in range(4):
        for j in range(i):
            assert torch.equal(blind[i], blind[j])
            assert (seen[i] - seen[j]).abs().max() > 0.3
            assert torch.equal(seen[i][: encoder.text_dim], blind[i][: encoder.text_dim])


def test_coordinates_of_a_drift_are_in_order_and_of_order_one(versions: list[Version]) -> None:
    stats = stats_of(versions, 1)
    digest = versions[0][0].spec.digest
    first = [float(stats.project(digest, probes, 1)[0]) for _, probes in versions]
    assert first in (sorted(first), sorted(first, reverse=True))
    assert sum(x * x for x in first) / 4 == pytest.approx(1.0, rel=1e-3)
    assert sum(first) == pytest.approx(0.0, abs=1e-3)


def test_an_unseen_version_continues_the_drift(versions: list[Version]) -> None:
    stats, digest = stats_of(versions[:3], 1), versions[0][0].spec.digest
    seen = [float(stats.project(digest, probes, 1)[0]) for _, probes in versions]
    assert seen[3] - seen[2] == pytest.approx(seen[2] - seen[1], rel=0.05)


def test_one_version_alone_has_coordinates_of_zero(versions: list[Version]) -> None:
    stats, digest = stats_of(versions[:1]), versions[0][0].spec.digest
    for _, probes in versions:
        assert torch.equal(stats.project(digest, probes, 4), torch.zeros(4))


def test_two_equal_versions_do_not_blow_up_a_third(versions: list[Version]) -> None:
    stats, digest = stats_of([versions[0], versions[0]]), versions[0][0].spec.digest
    found = stats.project(digest, versions[1][1], 4)
    assert torch.isfinite(found).all() and float(found.abs().max()) < 1e3


def test_unknown_architecture_has_coordinates_of_zero(versions: list[Version]) -> None:
    assert torch.equal(stats_of(versions).project("other", versions[0][1], 4), torch.zeros(4))


def test_order_of_versions_and_sign_of_axes_change_nothing(versions: list[Version]) -> None:
    forward, backward = stats_of(versions), stats_of(versions[::-1])
    digest = versions[0][0].spec.digest
    for _, probes in versions:
        assert torch.allclose(forward.project(digest, probes, 1), backward.project(digest, probes, 1), atol=1e-3)


def test_architectures_are_standardised_on_their_own(versions: list[Version]) -> None:
    both = [(record.spec.digest, probes) for record, probes in versions] + [
        ("other", {"m": 100 * randn(2, 2, seed=i)}) for i in range(3)
    ]
    digest = versions[0][0].spec.digest
    mixed, alone = fit_probe_stats(both, 2), stats_of(versions, 2)
    assert torch.equal(mixed.project(digest, versions[1][1], 2), alone.project(digest, versions[1][1], 2))


def test_random_conditions_name_things_and_say_nothing(tiny_bert: Path, versions: list[Version]) -> None:
    config = ConditionConfig(text_encoder=str(tiny_bert), text="random", model="random")
    first, second = ConditionEncoder(config), ConditionEncoder(config)
    stats = stats_of(versions)
    prompts = first.encode_prompts(["one", "two"])
    assert torch.equal(prompts, second.encode_prompts(["one", "two"])) and not torch.equal(prompts[0], prompts[1])
    bases = [first.encode_base(*version, stats) for version in versions]
    assert torch.equal(bases[0], second.encode_base(versions[0][0], {}, stats))  # the probes are not read
    assert len({tuple(row.tolist()) for row in bases}) == 4
    assert all(row.shape == (first.model_dim,) and 0.5 < float(row.std()) < 2.0 for row in bases)


def test_text_encoder_must_be_an_encoder(tiny_llama: Path) -> None:
    with pytest.raises(ConditionError, match=r"text_encoder .*tiny-llama.* is no sentence encoder"):
        ConditionEncoder(ConditionConfig(text_encoder=str(tiny_llama)))


def test_text_encoder_is_named_by_its_content(tiny_bert: Path, encoder: ConditionEncoder) -> None:
    assert encoder.fingerprint == base_of(tiny_bert).record.fingerprint
    assert encoder.text_dim == 32 and encoder.model_dim == 32 + 4
