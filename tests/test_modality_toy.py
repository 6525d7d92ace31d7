"""A kind of base that is added by one class: it is loaded, trained, scored and compared like those that ship.

Its bases read a number off a text. The metric is a figure of the set of examples, and lower is better: the root of the
mean squared error, which is no mean over examples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factory_fixtures import ALL_ROLES, base_of, toy_task
from torch import Tensor, nn

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import train_adapter
from oral_ray.bases.loading import LoadedBase, load_folder
from oral_ray.bases.spec import build_spec
from oral_ray.config import CorpusConfig, LoraSettings
from oral_ray.errors import BaseModelError
from oral_ray.evaluation.scoring import example_values, metric_of
from oral_ray.modalities import MODALITIES, Batch, Metric, Modality, TaskReader, modality_of
from oral_ray.modalities.encoder import embed
from oral_ray.modalities.text import encode, text_lengths
from oral_ray.tasks import Example, Task


def root_mean_square(errors_N: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors_N))))


RMSE = Metric("rmse", higher_is_better=False, figure=root_mean_square)


class Numbers(Modality):
    """Bases that read a number off a text."""

    name = "numbers"
    auto_class = "AutoModel"
    metrics = (RMSE,)

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """Those whose config.json says so."""
        return config.get("reads") == "numbers"

    def check(self, model: nn.Module, processor: Any) -> None:
        """A sound base in a test needs no look."""

    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """Every label is a number; there is nothing to tell apart."""

    def reader(self, model: nn.Module, processor: Any, labels: Sequence[str]) -> TaskReader:
        """The reader of a task whose answers are numbers."""
        return NumberReader(processor)


@dataclass(frozen=True, slots=True)
class NumberReader:
    """The number is the first coordinate of the text's embedding, times ten."""

    tokenizer: Any

    @property
    def metric(self) -> Metric:
        return RMSE

    def read(self, examples: Sequence[Example]) -> Batch:
        wanted_B = torch.tensor([float(example.label) for example in examples])
        return Batch(encode(self.tokenizer, [example.text for example in examples]), wanted_B)

    def numbers(self, model: nn.Module, batch: Batch) -> Tensor:
        """The number [B] that the model reads off each text."""
        return 10 * embed(model, batch.tokens)[:, 0]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(self.numbers(model, batch), batch.wanted_P)

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        return torch.zeros(())

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> list[float]:
        return (self.numbers(model, batch) - batch.wanted_P).tolist()

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        return text_lengths(self.tokenizer, examples)

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        return batch


@pytest.fixture
def base(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedBase:
    """A base of the kind that this file adds."""
    monkeypatch.setitem(MODALITIES, Numbers.name, Numbers())
    record = base_of(tiny_bert).record
    spec = record.spec.model_copy(update={"kind": Numbers.name})
    return LoadedBase(record.model_copy(update={"spec": spec}), *load_folder(tiny_bert, Numbers.name))


def numbers_task() -> Task:
    """The toy task with a number for each of its labels."""
    task, number = toy_task(), {"animal": "3", "plant": "-3"}
    splits = {
        split: tuple(Example(text=e.text, label=number[e.label]) for e in getattr(task, split))
        for split in ("train", "validation", "test")
    }
    return task.model_copy(update={"id": "numbers", "labels": (), **splits})


def test_a_base_of_an_added_kind_is_trained_and_scored_by_its_own_metric(base: LoadedBase):
    task = numbers_task()
    lora = LoraSettings(r=4, target_modules=ALL_ROLES)
    layout = AdapterLayout.of(base.record.spec, lora, token_dim=24)
    training = CorpusConfig(steps=30, batch_size=16, learning_rate=2e-2, keep_last=1)
    adapter = train_adapter([base], task, layout, training, seed=0)[-1]
    with_adapter, bare = (np.array(of) for of in example_values(base, task, [adapter, None], "test", 100))
    metric = metric_of(base, task)
    assert len(with_adapter) == len(bare) == len(task.test)
    assert metric.better(metric.figure(with_adapter), metric.figure(bare))
    assert metric.figure(with_adapter) < 1.5 < 2.5 < metric.figure(bare)
    assert metric.figure(bare) > abs(bare.mean()), "a figure of the set is not the mean of its values"


def test_values_stand_in_the_order_of_the_examples_whatever_the_batches_are(base: LoadedBase):
    task = numbers_task()
    longer = tuple(Example(text="a " * (60 - i) + e.text, label=e.label) for i, e in enumerate(task.test))
    [values] = example_values(base, task.model_copy(update={"test": longer}), [None], "test", 100)
    reader = modality_of(Numbers.name).reader(base.model, base.tokenizer, ())
    with torch.no_grad():
        alone = [reader.values(base.model, reader.read([example]))[0] for example in longer]
    assert values == pytest.approx(alone, abs=1e-4) and np.std(values) > 0.1


def test_lower_is_better_where_the_metric_says_so():
    assert RMSE.better(0.1, 0.2) and not RMSE.better(0.2, 0.1) and not RMSE.better(0.1, 0.1)
    assert Metric("accuracy").better(0.2, 0.1) and not Metric("accuracy").better(0.1, 0.1)


def test_a_kind_that_nobody_added_is_refused_by_name_with_those_there_are():
    with pytest.raises(BaseModelError, match=r"kind 'numbers' has layouts, .* scored on encoder, causal"):
        modality_of(Numbers.name)


def test_the_kind_of_a_base_is_what_the_last_modality_that_claims_its_config_says(monkeypatch: pytest.MonkeyPatch):
    bert = {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50
    }  # fmt: skip
    assert build_spec(bert, {}, "x").metadata.startswith("bert encoder language model with 1 layers")
    monkeypatch.setitem(MODALITIES, Numbers.name, Numbers())
    assert build_spec(bert | {"reads": "words"}, {}, "x").kind == "encoder"
    spec = build_spec(bert | {"reads": "numbers"}, {}, "x")
    assert spec.metadata.startswith("bert numbers model with 1 layers")
    assert modality_of(spec.kind) is MODALITIES[Numbers.name]


def test_a_kind_that_has_layouts_only_is_refused_by_name_until_a_modality_takes_its_name(
    monkeypatch: pytest.MonkeyPatch,
):
    class Sounds(Numbers):
        name = "audio"

    with pytest.raises(BaseModelError, match="kind 'audio' has layouts, but nothing here trains or scores on it"):
        modality_of(Sounds.name)
    monkeypatch.setitem(MODALITIES, Sounds.name, Sounds())
    assert isinstance(modality_of(Sounds.name), Sounds)
