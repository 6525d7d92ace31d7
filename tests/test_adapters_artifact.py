"""AdapterArtifact: digest, files, checks against a layout, folders of any making."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factory_fixtures import base_of, layout_of, random_artifact, random_factors
from peft import LoraConfig, PeftModel

from oral_ray.adapters.artifact import (
    CONFIG,
    PROVENANCE,
    WEIGHTS,
    AdapterArtifact,
    Provenance,
    build_artifact,
    parse_artifact,
    read_folder,
)
from oral_ray.config import LoraSettings
from oral_ray.errors import ArtifactError


@pytest.fixture
def artifact(tiny_bert: Path) -> AdapterArtifact:
    return random_artifact(layout_of(tiny_bert))


def changed(artifact: AdapterArtifact, name: str, tensor: torch.Tensor) -> AdapterArtifact:
    return AdapterArtifact(artifact.config, {**artifact.tensors, name: tensor}, artifact.provenance)


def test_digest_changes_with_every_tensor(artifact: AdapterArtifact) -> None:
    digests = {artifact.digest}
    for name, tensor in artifact.tensors.items():
        other = tensor.clone()
        other[0, 0] = torch.nextafter(other[0, 0], torch.tensor(9.0))
        digests.add(changed(artifact, name, other).digest)
    assert len(digests) == 1 + len(artifact.tensors)


def test_digest_changes_with_names_shapes_and_dtypes(artifact: AdapterArtifact) -> None:
    name = next(iter(artifact.tensors))
    tensor = artifact.tensors[name]
    others = [
        changed(artifact, name, tensor.reshape(tensor.shape[::-1])),
        changed(artifact, name, tensor.view(torch.int32)),
        AdapterArtifact(
            artifact.config,
            {(f"{key}_" if key == name else key): value for key, value in artifact.tensors.items()},
            artifact.provenance,
        ),
    ]
    assert artifact.digest not in {other.digest for other in others}


def test_digest_changes_with_every_config_value(artifact: AdapterArtifact) -> None:
    for key in artifact.config:
        other = AdapterArtifact({**artifact.config, key: "other"}, artifact.tensors, artifact.provenance)
        assert other.digest != artifact.digest, key


def test_digest_does_not_change_with_provenance_or_memory_order(artifact: AdapterArtifact) -> None:
    provenance = Provenance(origin="generated", base_id="other", base_fingerprint="x", seed=5)
    strided = {name: tensor.T.contiguous().T for name, tensor in reversed(artifact.tensors.items())}
    assert AdapterArtifact(artifact.config, strided, provenance).digest == artifact.digest
    assert len(artifact.digest) == 64


def test_config_is_the_last_file(artifact: AdapterArtifact) -> None:
    assert list(artifact.files())[-1] == CONFIG
    assert set(artifact.files()) == {WEIGHTS, PROVENANCE, CONFIG}


def test_files_give_back_the_artifact(artifact: AdapterArtifact, tiny_bert: Path) -> None:
    back = parse_artifact(artifact.files(), "it")
    assert back.digest == artifact.digest and back.provenance == artifact.provenance
    assert back.files() == artifact.files()
    factors = back.factors(layout_of(tiny_bert))
    wanted = random_factors(layout_of(tiny_bert), 0)
    assert all(torch.equal(factors[m][i], wanted[m][i]) for m in wanted for i in (0, 1))


def test_lora_settings_are_read_back(artifact: AdapterArtifact) -> None:
    assert artifact.lora == LoraSettings(r=2, lora_alpha=8.0, target_modules=("query", "value"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(
    artifact: AdapterArtifact, tiny_bert: Path, value: float
) -> None:
    factors = random_factors(layout_of(tiny_bert), 0)
    module = "encoder.layer.1.attention.self.value"
    factors[module][1][3, 1] = value
    with pytest.raises(ArtifactError, match=f"not finite in base_model.model.{module}.lora_B.weight"):
        build_artifact(factors, layout_of(tiny_bert), artifact.provenance)


def test_another_rank_is_refused_with_both_ranks(artifact: AdapterArtifact, tiny_bert: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'toy' on base 'tiny'.*is \(2, 32\).*r=3.*\(3, 32\).*again with r=3"):
        artifact.factors(layout_of(tiny_bert, r=3))


def test_other_target_modules_are_refused_by_name(artifact: AdapterArtifact, tiny_bert: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lacks 4 tensors.*intermediate.dense"):
        artifact.check(layout_of(tiny_bert, targets=("q", "v", "up")))
    with pytest.raises(ArtifactError, match=r"4 tensors its layout does not know.*value"):
        artifact.check(layout_of(tiny_bert, targets=("q",)))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, PROVENANCE])
def test_a_missing_file_is_named(artifact: AdapterArtifact, name: str) -> None:
    files = {key: data for key, data in artifact.files().items() if key != name}
    with pytest.raises(ArtifactError, match=f"some/where has no {name}"):
        parse_artifact(files, "some/where")


DAMAGE: dict[str, tuple[str, bytes]] = {
    "weights cut": (WEIGHTS, b"\x40\x00\x00\x00\x00\x00\x00\x00{"),
    "weights empty": (WEIGHTS, b""),
    "weights with a giant header": (WEIGHTS, b"\xff" * 16),
    "config no JSON": (CONFIG, b"{"),
    "config no UTF-8": (CONFIG, b"\xff\xfe{}"),
    "config no object": (CONFIG, b"[1]"),
    "config nested without end": (CONFIG, b"[" * 200_000),
    "provenance no JSON": (PROVENANCE, b"nothing"),
    "provenance with an unknown key": (PROVENANCE, b'{"origin":"a","base":"b","base_fingerprint":"c","evil":1}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(artifact: AdapterArtifact, damage: str) -> None:
    name, data = DAMAGE[damage]
    with pytest.raises(ArtifactError, match="adapter some/where"):
        parse_artifact({**artifact.files(), name: data}, "some/where")


def test_half_a_weights_file_is_refused(artifact: AdapterArtifact) -> None:
    files = artifact.files()
    with pytest.raises(ArtifactError, match="damaged"):
        parse_artifact({**files, WEIGHTS: files[WEIGHTS][:-7]}, "it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": None}, "r=None: input should be a valid integer"),
        ({"r": 0}, "r=0: input should be greater than 0"),
        ({"lora_alpha": "much"}, "lora_alpha='much': input should be a valid number"),
        ({"target_modules": None}, "target_modules is no list.*is known on its base only"),
        ({"target_modules": "q.*"}, "target_modules is no list.*is known on its base only"),
        ({"use_dora": True}, "is a DoRA"),
    ],
)
def test_config_that_is_no_lora_is_refused(artifact: AdapterArtifact, change: dict[str, Any], words: str) -> None:
    other = AdapterArtifact({**artifact.config, **change}, artifact.tensors, artifact.provenance)
    with pytest.raises(ArtifactError, match=words):
        _ = other.lora


def test_scalar_tensors_are_refused_and_not_a_crash(artifact: AdapterArtifact, tiny_bert: Path) -> None:
    odd = changed(artifact, next(iter(artifact.tensors)), torch.tensor(1.0))
    with pytest.raises(ArtifactError, match=r"is \(\)"):
        odd.check(layout_of(tiny_bert))


def test_folder_that_plain_peft_saved_is_read(tiny_bert: Path, tmp_path: Path) -> None:
    layout = layout_of(tiny_bert, r=3)
    model = PeftModel(base_of(tiny_bert).model, LoraConfig(r=3, lora_alpha=8, target_modules=["query", "value"]))
    model.save_pretrained(str(tmp_path))
    model.unload()
    artifact = read_folder(tmp_path)
    artifact.check(layout)
    assert artifact.lora == layout.lora.model_copy(update={"target_modules": ("query", "value")})
    assert artifact.provenance.origin == "unknown" and len(artifact.digest) == 64


def test_folder_of_an_artifact_is_read_with_its_provenance(artifact: AdapterArtifact, tmp_path: Path) -> None:
    for name, data in artifact.files().items():
        (tmp_path / name).write_bytes(data)
    back = read_folder(tmp_path)
    assert back.digest == artifact.digest and back.provenance == artifact.provenance


def test_folder_without_a_config_is_no_adapter(artifact: AdapterArtifact, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(artifact.files()[WEIGHTS])
    with pytest.raises(ArtifactError, match=f"no adapter at .*{CONFIG} is missing"):
        read_folder(tmp_path)


def test_config_says_what_engines_need(artifact: AdapterArtifact) -> None:
    config = json.loads(artifact.files()[CONFIG])
    assert config["peft_type"] == "LORA" and config["bias"] == "none" and config["r"] == 2
    assert config["lora_alpha"] == 8 and isinstance(config["lora_alpha"], int)
    assert config["target_modules"] == ["query", "value"] and config["base_model_name_or_path"] == "tiny"
    assert not {"rank_pattern", "alpha_pattern", "use_dora", "modules_to_save"} & config.keys()
