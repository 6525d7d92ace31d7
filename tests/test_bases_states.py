"""States below the first adapted layer: computed once, kept, and the same as computing everything every time."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from factory_fixtures import base_of, layout_of, random_artifact, toy_task, words_task
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import train_adapter
from oral_ray.bases import states
from oral_ray.bases.loading import LoadedBase
from oral_ray.bases.states import PrefixStates
from oral_ray.config import CorpusConfig, LoraSettings, build_config
from oral_ray.evaluation.scoring import example_values
from oral_ray.modalities import causal, modality_of
from oral_ray.pipeline.corpus import training_task
from oral_ray.pipeline.run import open_run
from oral_ray.tasks import Example, Task, load_task

CHOSEN = [5, 0, 17]


@pytest.fixture
def base(tiny_llama: Path) -> LoadedBase:
    return base_of(tiny_llama)


def kept_reader(base: LoadedBase, keep: Path, labels: Sequence[str] = ("animal", "plant"), first_layer: int = 1):
    reader = modality_of(base.record.spec.kind).reader(base.model, base.tokenizer, labels)
    words = toy_task().examples("train")[:20]
    lengths = [7 * i % 5 for i in range(len(words))]
    examples = [Example(text=e.text + " red" * n, label=e.label) for e, n in zip(words, lengths, strict=True)]
    return reader, examples, PrefixStates(base, reader, examples, first_layer, keep, "weights", "texts")


@torch.no_grad()
@pytest.mark.parametrize("labels", [("animal", "plant"), ()])
def test_a_batch_of_kept_states_has_the_logits_of_the_whole_model(base: LoadedBase, tmp_path: Path, labels):
    reader, examples, read = kept_reader(base, tmp_path, labels)
    batch = read(CHOSEN)
    wanted = reader.read([examples[i] for i in CHOSEN])
    assert batch.first_layer == 1 and torch.equal(batch.wanted_P, wanted.wanted_P)
    torch.testing.assert_close(
        reader.logits(base.model, batch), reader.logits(base.model, wanted), atol=1e-5, rtol=1e-5
    )


def test_states_are_computed_once_and_read_back_to_the_bit(base: LoadedBase, tmp_path: Path, monkeypatch):
    _, _, first = kept_reader(base, tmp_path / "deep")
    monkeypatch.setattr(causal, "skip_layers", lambda *_: pytest.fail("computed again"))
    _, _, second = kept_reader(base, tmp_path / "deep")
    assert torch.equal(states_of(first), states_of(second))
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_a_damaged_file_of_states_is_made_again(base: LoadedBase, tmp_path: Path):
    _, _, first = kept_reader(base, tmp_path)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    _, _, again = kept_reader(base, tmp_path)
    assert torch.equal(states_of(first), states_of(again)) and file.read_bytes() == whole


def test_a_model_whose_layers_cannot_be_skipped_reads_as_ever(tiny_bert: Path, tmp_path: Path):
    reader, examples, read = kept_reader(base_of(tiny_bert), tmp_path)
    batch = read(CHOSEN)
    assert batch.first_layer == 0 and "input_ids" in batch.tokens and not list(tmp_path.iterdir())
    assert batch.wanted_P.tolist() == reader.read([examples[i] for i in CHOSEN]).wanted_P.tolist()


def test_training_on_kept_states_is_training(base: LoadedBase, tiny_llama: Path, tmp_path: Path):
    settings = LoraSettings(r=2, target_modules=("q", "v"), last_layers=1)
    layout = AdapterLayout.of(base.record.spec, settings, 24)
    assert layout.first_layer == 1 and layout_of(tiny_llama).first_layer == 0
    training = CorpusConfig(steps=12, batch_size=8, learning_rate=2e-2, keep_last=1)
    [kept] = train_adapter([base], toy_task(), layout, training, seed=0, keep=tmp_path)
    [again] = train_adapter([base], toy_task(), layout, training, seed=0, keep=tmp_path)
    [plain] = train_adapter([base], toy_task(), layout, training, seed=0)
    assert kept.digest == again.digest and len(list(tmp_path.iterdir())) == 1
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(kept.tensors[name], tensor, atol=1e-3, rtol=1e-2)


def test_every_version_and_layer_has_states_of_its_own(base: LoadedBase, tmp_path: Path):
    record = base.record.model_copy(update={"id": "other", "fingerprint": "f" * 32})
    other = LoadedBase(record, type(base.model)(base.model.config).eval(), base.tokenizer)
    layout = AdapterLayout.of(base.record.spec, LoraSettings(r=2, target_modules=("q", "v"), last_layers=1), 24)
    training = CorpusConfig(steps=6, batch_size=8, learning_rate=2e-2, keep_last=1)
    [kept] = train_adapter([base, other], toy_task(), layout, training, seed=0, keep=tmp_path)
    [plain] = train_adapter([base, other], toy_task(), layout, training, seed=0)
    assert len(list(tmp_path.iterdir())) == 2
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(kept.tensors[name], tensor, atol=1e-3, rtol=1e-2)
    train_adapter([base], toy_task("toy again"), layout, training, seed=0, keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("task", [toy_task(), words_task()], ids=["labels", "free text"])
def test_answers_on_kept_states_are_the_answers(base: LoadedBase, tmp_path: Path, task: Task, monkeypatch):
    settings = LoraSettings(r=2, target_modules=("q", "v"), last_layers=1)
    layout = AdapterLayout.of(base.record.spec, settings, 24)
    training = CorpusConfig(steps=60, batch_size=16, learning_rate=2e-2, keep_last=1)
    arms = [train_adapter([base], task, layout, training, seed=0)[0], random_artifact(layout), None]
    plain = example_values(base, task, arms, "test", 30)
    assert example_values(base, task, arms, "test", 30, tmp_path) == plain and sum(plain[0]) > 0
    monkeypatch.setattr(causal, "skip_layers", lambda *_: pytest.fail("computed again"))
    assert example_values(base, task, arms, "test", 30, tmp_path) == plain
    monkeypatch.undo()
    example_values(base, task, arms, "test", 20, tmp_path)
    example_values(base, task, arms, "validation", 30, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_no_training_reads_more_than_the_first_examples(tmp_path: Path):
    task, store = load_task("wordnet/mind"), {"store": {"uri": str(tmp_path)}}
    cut = training_task(open_run(build_config({**store, "corpus": {"num_examples": 16}})), task.id)
    assert cut.train == task.train[:16] and (cut.id, cut.validation, cut.test) == (task.id, task.validation, task.test)
    assert training_task(open_run(build_config(store)), task.id) == task


def states_of(read: PrefixStates) -> Tensor:
    return read(range(20)).tokens["inputs_embeds"]


def test_states_of_another_device_are_others(base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Path] = []
    monkeypatch.setattr(states, "_kept", lambda path, num, device: seen.append(path) or [])
    kept_reader(base, tmp_path)
    kept_reader(LoadedBase(base.record, copy.deepcopy(base.model).to("meta"), base.tokenizer), tmp_path)
    assert len({*seen}) == 2
