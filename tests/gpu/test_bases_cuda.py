"""Trainings and scores on a CUDA device are those of the CPU up to rounding; skipped where there is none."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from factory_fixtures import base_of, layout_of, random_artifact, toy_task, words_task
from torch.testing import assert_close

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import initial_factors, train_adapter
from oral_ray.bases.evolve import evolve_base
from oral_ray.bases.loading import LoadedBase, load_base, open_base
from oral_ray.bases.pretrain import perplexity, pretrain_base
from oral_ray.config import CorpusConfig, EvolveOrigin, FunctionalPhase, LoraSettings, PretrainOrigin, VersionPool
from oral_ray.evaluation.scoring import example_values
from oral_ray.generator.functional import FunctionalSource, train_static
from oral_ray.objects import FileObjects

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICES = ("cpu", "cuda")
TRAINING = CorpusConfig(steps=12, batch_size=4, learning_rate=1e-2, keep_last=2)


def on(device: str, folder: Path) -> LoadedBase:
    return load_base(base_of(folder).record, device=device)


def upper(folder: Path) -> AdapterLayout:
    """Adapters of the last layer alone, so that there is a layer below to enter."""
    lora = LoraSettings(r=2, target_modules=("q", "v"), last_layers=1)
    return AdapterLayout.of(base_of(folder).record.spec, lora, 24)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_an_adapter_trained_there_is_the_one_trained_here(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    folder = request.getfixturevalue(name)
    layout, made = upper(folder), {}
    for device in DEVICES:
        bases = [on(device, folder), on(device, folder)]
        made[device] = train_adapter(bases, toy_task(), layout, TRAINING, 0, keep=tmp_path / device)
    for here, there in zip(made["cpu"], made["cuda"], strict=True):
        assert {value.device.type for value in there.tensors.values()} == {"cpu"}
        for key, value in here.tensors.items():
            assert_close(there.tensors[key], value, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("make", [toy_task, words_task])
def test_answers_there_are_those_here(tiny_llama: Path, tmp_path: Path, make, keep: bool):
    artifacts = [None, random_artifact(upper(tiny_llama)), random_artifact(layout_of(tiny_llama), seed=1, scale=2.0)]
    answers = [
        example_values(on(device, tiny_llama), make(), artifacts, "validation", 40, tmp_path / device if keep else None)
        for device in DEVICES
    ]
    assert answers[0] == answers[1]


def test_encoders_answer_there_as_here(tiny_bert: Path):
    artifacts = [None, random_artifact(layout_of(tiny_bert), scale=2.0)]
    here, there = (example_values(on(d, tiny_bert), toy_task(), artifacts, "validation", 40) for d in DEVICES)
    assert here == there


@pytest.mark.parametrize("pool", [None, VersionPool(num_versions=2, num_examples=8)])
def test_static_training_on_virtual_versions_is_the_same_there(
    tiny_llama: Path, tmp_path: Path, pool: VersionPool | None
):
    layout, found = upper(tiny_llama), []
    for device in DEVICES:
        bases = [on(device, tiny_llama) for _ in range(2)]
        with torch.no_grad():
            for parameter in bases[0].model.parameters():
                parameter *= 1.05
        phase = FunctionalPhase(num_examples=4, tasks_per_step=1, pool=pool)
        source = FunctionalSource(bases, [[0, 1]], [toy_task()], [], [layout], phase, tmp_path / device)
        found.append(train_static(source, initial_factors(layout, 0), 6, 1e-2, 0))
    for module, pair in found[0].items():
        for here, there in zip(pair, found[1][module], strict=True):
            assert there.device.type == "cpu"
            assert_close(there, here, atol=2e-3, rtol=2e-2)


def documents() -> Sequence[str]:
    return [f"the big dog number {i} eats bread and the cat sleeps on the red stone" for i in range(2000)]


def test_a_version_pretrained_there_is_the_one_pretrained_here(tiny_llama: Path, tmp_path: Path):
    origin = PretrainOrigin(
        parent="t0", corpus="news", steps=4, batch_size=2, block_tokens=16, learning_rate=1e-3, seed=0
    )
    perplexities = []
    for device in DEVICES:
        objects = FileObjects(tmp_path / device)
        pretrain_base(base_of(tiny_llama).record, objects, "t1/", origin, documents(), device)
        perplexities.append(perplexity(on(device, tmp_path / device / "t1"), documents(), 16))
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)
    assert perplexities[0] < perplexity(base_of(tiny_llama), documents(), 16)


def test_a_version_evolved_there_is_the_one_evolved_here(tiny_bert: Path, tmp_path: Path):
    origin = EvolveOrigin(parent="t0", steps=4, batch_size=4, seed=0)
    pairs, weights = [(f"dog {i}", f"a big animal {i} that runs") for i in range(16)], []
    for device in DEVICES:
        evolve_base(base_of(tiny_bert).record, FileObjects(tmp_path / device), "t1/", origin, pairs, device)
        weights.append(open_base(str(tmp_path / device / "t1")).model.state_dict())
    before = open_base(str(tiny_bert)).model.state_dict()
    for key, value in weights[0].items():
        assert_close(weights[1][key] - before[key], value - before[key], atol=1e-4, rtol=5e-2)
