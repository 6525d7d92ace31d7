"""Training with peft, attaching, and loading as a user would."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from factory_fixtures import ALL_ROLES, base_of, copy_of_weights, layout_of, random_artifact, toy_task
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor

from oral_ray.adapters.artifact import CONFIG, WEIGHTS, AdapterArtifact, build_artifact
from oral_ray.adapters.lora import attached, load_strictly, train_adapter
from oral_ray.bases.loading import LoadedBase
from oral_ray.config import CorpusConfig
from oral_ray.errors import ArtifactError, LayoutError
from oral_ray.modalities import modality_of
from oral_ray.modalities.text import encode

TEXTS = ["red dog runs", "big tree", "the cat is an animal of the house"]
TRAINING = CorpusConfig(steps=25, batch_size=16, learning_rate=2e-2, keep_last=3)


@pytest.fixture(params=("tiny_bert", "tiny_llama"))
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def base(folder: Path) -> Iterator[LoadedBase]:
    """A base; whatever a test does, it must be as before afterwards."""
    base = base_of(folder)
    before, names = copy_of_weights(base.model), [name for name, _ in base.model.named_modules()]
    yield base
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert names == [name for name, _ in base.model.named_modules()] and not base.model.training


@torch.no_grad()
def outputs(model, base: LoadedBase) -> Tensor:
    batch = encode(base.tokenizer, TEXTS)
    result = model(**batch)
    values = result.logits if base.record.spec.kind == "causal" else result.last_hidden_state
    return values[batch["attention_mask"].bool()]


def written(artifact: AdapterArtifact, folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    for name, data in artifact.files().items():
        (folder / name).write_bytes(data)
    if tensors is not None:
        (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    return folder


@torch.no_grad()
def train_loss(base: LoadedBase, artifact: AdapterArtifact | None) -> float:
    task = toy_task()
    reader = modality_of(base.record.spec.kind).reader(base.model, base.tokenizer, task.labels)
    batch = reader.read(task.examples("train"))
    if artifact is None:
        return float(reader.loss(base.model, batch))
    with attached(base, artifact) as model:
        return float(reader.loss(model, batch))


def test_training_lowers_the_loss_and_keeps_the_last_checkpoints(base: LoadedBase, folder: Path) -> None:
    layout = layout_of(folder, 4, ALL_ROLES)
    artifacts = train_adapter([base], toy_task(), layout, TRAINING, seed=3, recipe="why")
    assert [artifact.provenance.step for artifact in artifacts] == [23, 24, 25]
    assert len({artifact.digest for artifact in artifacts}) == 3
    assert train_loss(base, artifacts[-1]) < 0.7 * train_loss(base, None)
    provenance = artifacts[-1].provenance
    assert (provenance.origin, provenance.task, provenance.seed, provenance.recipe) == ("trained", "toy", 3, "why")
    assert provenance.base_fingerprint == base.record.fingerprint and provenance.prompt == toy_task().prompt


def test_same_seed_trains_the_same_digest_and_another_seed_another(base: LoadedBase, folder: Path) -> None:
    training = TRAINING.model_copy(update={"steps": 4, "keep_last": 1})

    def digest(seed: int) -> str:
        torch.manual_seed(seed + 77)  # the global stream must not matter
        return train_adapter([base], toy_task(), layout_of(folder), training, seed)[-1].digest

    assert digest(0) == digest(0) != digest(1)


def test_all_adapters_of_a_layout_start_from_the_same_factors(base: LoadedBase, folder: Path) -> None:
    training = TRAINING.model_copy(update={"steps": 1, "keep_last": 1, "learning_rate": 1e-30})
    first, second = (train_adapter([base], toy_task(), layout_of(folder), training, seed)[0] for seed in (0, 1))
    for name, tensor in first.tensors.items():
        assert torch.allclose(tensor, second.tensors[name], atol=1e-20)
        assert bool((tensor.abs() > 1e-6).any()) == (".lora_A." in name)
    other = train_adapter([base], toy_task(), layout_of(folder), training.model_copy(update={"init_seed": 1}), 0)[0]
    assert not torch.equal(other.tensors[next(iter(other.tensors))], first.tensors[next(iter(first.tensors))])


def test_a_training_starts_from_the_factors_it_is_given(base: LoadedBase, folder: Path) -> None:
    layout = layout_of(folder)
    start = random_artifact(layout)
    training = TRAINING.model_copy(update={"steps": 1, "keep_last": 1, "learning_rate": 1e-30})
    [same] = train_adapter([base], toy_task(), layout, training, 0, start=start.factors(layout))
    assert same.tensors.keys() == start.tensors.keys()
    assert all(torch.equal(same.tensors[name], tensor) for name, tensor in start.tensors.items())


def test_joint_training_takes_all_steps_of_all_bases(base: LoadedBase, folder: Path) -> None:
    other = LoadedBase(
        base.record.model_copy(update={"id": "other"}), type(base.model)(base.model.config).eval(), base.tokenizer
    )
    with torch.no_grad():
        for mine, given in zip(other.model.parameters(), base.model.parameters(), strict=True):
            mine.copy_(given * 1.01)
    training = TRAINING.model_copy(update={"steps": 10, "keep_last": 1})
    joint = train_adapter([base, other], toy_task(), layout_of(folder, 4, ALL_ROLES), training, seed=0)[-1]
    assert (joint.provenance.origin, joint.provenance.step, joint.provenance.base_id) == ("joint", 20, "other")
    assert train_loss(base, joint) < 0.8 * train_loss(base, None)
    assert train_loss(other, joint) < 0.8 * train_loss(other, None)


def test_a_base_named_three_times_is_a_training_three_times_as_long(folder: Path) -> None:
    training = TRAINING.model_copy(update={"steps": 3, "keep_last": 1})
    [long] = train_adapter([base_of(folder) for _ in range(3)], toy_task(), layout_of(folder), training, seed=0)
    [same] = train_adapter(
        [base_of(folder)], toy_task(), layout_of(folder), training.model_copy(update={"steps": 9}), seed=0
    )
    assert (long.provenance.origin, long.provenance.step) == ("trained", 9)
    assert all(torch.allclose(long.tensors[name], tensor, atol=1e-6) for name, tensor in same.tensors.items())


@pytest.mark.parametrize(("r", "targets"), [(2, ("q", "v")), (4, ALL_ROLES)])
def test_plain_peft_loads_every_key_of_a_written_folder(
    base: LoadedBase, folder: Path, tmp_path: Path, r: int, targets: tuple[str, ...]
) -> None:
    artifact = random_artifact(layout_of(folder, r, targets))
    written(artifact, tmp_path)
    bare = outputs(base.model, base)
    with attached(base, artifact) as model:
        wanted = outputs(model, base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of missing keys
        model = PeftModel.from_pretrained(base.model, str(tmp_path))
    try:
        result = model.load_adapter(str(tmp_path), "again")
        assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora" in key]
        assert torch.equal(outputs(model, base), wanted)
    finally:
        model.unload()
    assert (wanted - bare).abs().max() > 1e-2
    assert load_strictly(base, tmp_path).digest == artifact.digest


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_strict_loading_refuses_a_missing_or_extra_key(
    base: LoadedBase, folder: Path, tmp_path: Path, change: str
) -> None:
    artifact = random_artifact(layout_of(folder))
    tensors = dict(artifact.tensors)
    name = sorted(tensors)[1]
    if change == "missing":
        del tensors[name]
    else:
        name = name.replace("0", "7", 1)
        tensors[name] = torch.zeros(2, 32)
    written(artifact, tmp_path, tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ArtifactError, match=f"1 tensors .*'{name}"):
            load_strictly(base, tmp_path)


def test_strict_loading_refuses_tensors_of_another_shape(base: LoadedBase, folder: Path, tmp_path: Path) -> None:
    artifact = random_artifact(layout_of(folder))
    tensors = {
        name: tensor[:, :1].clone() if ".lora_B." in name else tensor for name, tensor in artifact.tensors.items()
    }
    written(artifact, tmp_path, tensors)
    with pytest.raises(ArtifactError):
        load_strictly(base, tmp_path)


def test_strict_loading_of_no_adapter_says_so(base: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no adapter at"):
        load_strictly(base, tmp_path)


def test_zero_adapter_is_the_base(base: LoadedBase, folder: Path) -> None:
    layout = layout_of(folder, 4, ALL_ROLES)
    factors = random_artifact(layout).factors(layout)
    zero = {module: (a, torch.zeros_like(b)) for module, (a, b) in factors.items()}
    with attached(base, build_artifact(zero, layout, random_artifact(layout).provenance)) as model:
        assert torch.equal(outputs(model, base), outputs(base.model, base))
    with attached(base, random_artifact(layout)) as model:
        changed = outputs(model, base)
    assert not torch.allclose(changed, outputs(base.model, base), atol=1e-2)


def test_alpha_over_rank_scales_an_adapter(base: LoadedBase, folder: Path) -> None:
    artifact = random_artifact(layout_of(folder), scale=0.05)
    twice = AdapterArtifact({**artifact.config, "lora_alpha": 16}, artifact.tensors, artifact.provenance)
    doubled = {n: 2 * t if ".lora_B." in n else t for n, t in artifact.tensors.items()}
    with attached(base, twice) as model:
        left = outputs(model, base)
    with attached(base, AdapterArtifact(artifact.config, doubled, artifact.provenance)) as model:
        right = outputs(model, base)
    assert torch.allclose(left, right, atol=1e-5)


def test_attaching_ends_even_when_the_body_fails(base: LoadedBase, folder: Path) -> None:
    with pytest.raises(RuntimeError, match="body"), attached(base, random_artifact(layout_of(folder))):
        raise RuntimeError("body")


def test_attaching_an_adapter_of_other_tensors_is_refused_by_name(base: LoadedBase, folder: Path) -> None:
    artifact = random_artifact(layout_of(folder))
    fewer = AdapterArtifact(artifact.config, dict(list(artifact.tensors.items())[1:]), artifact.provenance)
    with pytest.raises(ArtifactError, match=f"'toy'.* lacks 1 tensors.*{next(iter(artifact.tensors))}"):
        attached(base, fewer).__enter__()


def test_attaching_an_adapter_of_another_architecture_is_refused(tiny_bert: Path, tiny_llama: Path) -> None:
    with pytest.raises(LayoutError, match=r"\['q_proj', 'v_proj'\] matches no module of bert; roles are q, k, v"):
        attached(base_of(tiny_bert), random_artifact(layout_of(tiny_llama))).__enter__()


def test_folder_for_another_rank_than_its_config_says_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    artifact = random_artifact(layout_of(tiny_bert))
    written(artifact, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**artifact.config, "r": 3}))
    with pytest.raises(ArtifactError):
        load_strictly(base_of(tiny_bert), tmp_path)


def test_a_key_of_another_version_of_peft_does_not_stop_a_score(tiny_bert: Path) -> None:
    base = base_of(tiny_bert)
    artifact = random_artifact(layout_of(tiny_bert))
    newer = AdapterArtifact(artifact.config | {"future_config": None}, artifact.tensors, artifact.provenance)
    with attached(base, newer) as model:
        assert sum("lora_A" in name for name, _ in model.named_parameters()) > 0
