"""Scores, paired intervals, calibrated zero-shot, distances to the corpus."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from factory_fixtures import ALL_ROLES, base_of, layout_of, random_artifact, toy_task

from oral_ray.adapters.lora import train_adapter
from oral_ray.config import CorpusConfig
from oral_ray.errors import EvaluationError
from oral_ray.evaluation.scoring import example_values, majority_values
from oral_ray.evaluation.statistics import mean_over_tasks, paired_difference
from oral_ray.modalities import ACCURACY, Batch
from oral_ray.modalities.encoder import Encoder, EncoderReader
from oral_ray.tasks import Example, Task

Correct = dict[str, np.ndarray]


def answers(accuracy: float, seed: int, tasks: int = 4, seeds: int = 1, n: int = 400) -> Correct:
    rng = np.random.default_rng(seed)
    return {f"task-{i}": (rng.random((seeds, n)) < accuracy).astype(float) for i in range(tasks)}


def test_interval_covers_a_known_difference_about_as_often_as_it_says() -> None:
    covered, widths = 0, []
    for seed in range(60):
        interval = paired_difference(answers(0.8, 2 * seed), answers(0.7, 2 * seed + 1), ACCURACY, 300)
        covered += interval.low <= 0.1 <= interval.high
        widths.append(interval.high - interval.low)
        assert interval.low <= interval.mean <= interval.high
    assert covered >= 52  # 95% of 60 is 57; 51 or fewer has probability below 0.001
    wanted = 2 * 1.96 * np.sqrt((0.8 * 0.2 + 0.7 * 0.3) / 1600)
    assert np.mean(widths) == pytest.approx(wanted, rel=0.1)


def test_identical_arms_differ_by_exactly_zero() -> None:
    arm = answers(0.8, 0, seeds=3)
    interval = paired_difference(arm, {task: values.copy() for task, values in arm.items()}, ACCURACY, 500)
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_pairing_makes_the_interval_of_arms_that_agree_narrow() -> None:
    arm = answers(0.7, 0)
    better = {task: values.copy() for task, values in arm.items()}
    for values in better.values():
        values[0, np.flatnonzero(values[0] == 0)[:8]] = 1.0  # eight more right, all others as before
    paired, alone = paired_difference(better, arm, ACCURACY, 1000), mean_over_tasks(arm, ACCURACY, 1000)
    assert paired.mean == pytest.approx(8 / 400)
    assert 0 < paired.low < paired.mean < paired.high
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)


def test_swapping_arms_mirrors_the_interval() -> None:
    left, right = answers(0.8, 0, seeds=2), answers(0.7, 1, seeds=2)
    one, two = paired_difference(left, right, ACCURACY, 500), paired_difference(right, left, ACCURACY, 500)
    assert (one.mean, one.low, one.high) == pytest.approx((-two.mean, -two.high, -two.low))


def test_mean_is_over_tasks_and_not_over_examples() -> None:
    arm = {"large": np.ones((1, 300)), "small": np.zeros((1, 10))}
    interval = mean_over_tasks(arm, ACCURACY, 100)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_more_examples_make_a_narrower_interval() -> None:
    few, many = (mean_over_tasks(answers(0.7, 0, tasks=1, n=n), ACCURACY, 1000) for n in (100, 1600))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4.0, rel=0.25)


def test_spread_over_seeds_is_in_the_interval() -> None:
    steady = {"t": np.tile((np.arange(400) % 2 == 0).astype(float), (4, 1))}
    unsteady = {"t": np.repeat([[0.0], [1.0], [0.0], [1.0]], 400, axis=1)}
    narrow, wide = mean_over_tasks(steady, ACCURACY, 1000), mean_over_tasks(unsteady, ACCURACY, 1000)
    assert narrow.mean == wide.mean == 0.5
    assert narrow.high - narrow.low < 0.15 and wide.high - wide.low > 0.9


def test_an_arm_with_more_seeds_can_be_compared_with_one_without() -> None:
    interval = paired_difference(answers(0.8, 0, seeds=3), answers(0.6, 1), ACCURACY, 300)
    assert interval.low < 0.2 < interval.high


def test_intervals_are_the_same_in_every_run_and_for_every_order_of_tasks() -> None:
    arm = answers(0.7, 0)
    one, again = (mean_over_tasks(of, ACCURACY, 300) for of in (arm, {task: arm[task] for task in reversed(arm)}))
    assert one.model_dump() == pytest.approx(again.model_dump())
    assert mean_over_tasks(arm, ACCURACY, 300, seed=1) != mean_over_tasks(arm, ACCURACY, 300, seed=0)


def test_arms_on_other_tasks_or_examples_are_refused_by_name() -> None:
    arm = answers(0.8, 0, tasks=2)
    with pytest.raises(EvaluationError, match=r"other tasks: \['task-0', 'task-1'\] and \['task-0'\]"):
        paired_difference(arm, {"task-0": arm["task-0"]}, ACCURACY, 10)
    with pytest.raises(EvaluationError, match="other examples of 'task-1'"):
        paired_difference(arm, {**arm, "task-1": arm["task-1"][:, :10]}, ACCURACY, 10)


def skewed_task() -> Task:
    """Three of four training examples are plants, and half of the test examples are."""
    task = toy_task()
    plants = [e for e in task.train if e.label == "plant"]
    animals = [e for e in task.train if e.label == "animal"]
    return task.model_copy(update={"train": (*animals[:8], *plants[:24])})


def test_majority_answers_the_most_frequent_training_label() -> None:
    task = skewed_task()
    found = majority_values(ACCURACY, task, "test", 10)
    assert found == [example.label == "plant" for example in task.examples("test")[:10]]
    even = toy_task()
    assert Counter(example.label for example in even.train) == {"animal": 32, "plant": 32}
    assert majority_values(ACCURACY, even, "test", 100) == [
        e.label == "animal" for e in even.examples("test")
    ]  # the first


def test_zero_shot_is_calibrated_by_the_validation_inputs_alone(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that likes `plant` everywhere, a little less where the text is about an animal, is right everywhere."""
    task, asked = toy_task(), []

    class Skewed(EncoderReader):
        def read(self, examples):
            asked.extend(example.text for example in examples)
            words = ("dog", "cat", "bird", "horse")
            animal = torch.tensor([any(word in example.text for word in words) for example in examples])
            wanted = torch.tensor([task.labels.index(example.label) for example in examples])
            return Batch({"animal": animal}, wanted)

        def logits(self, model, batch):
            p = torch.where(batch.tokens["animal"], 0.2, 0.05)
            return torch.stack([p, 1 - p], dim=1).log()

    base = base_of(tiny_bert)
    skewed = Skewed(base.tokenizer, task.labels, torch.zeros(2, 32), 256)
    monkeypatch.setattr(Encoder, "reader", lambda *_: skewed)
    assert all(example_values(base_of(tiny_bert), task, [None], "test", 100)[0])
    assert sorted(asked) == sorted(e.text for split in ("test", "validation") for e in task.examples(split))
    [adapted] = example_values(base_of(tiny_bert), task, [random_artifact(layout_of(tiny_bert))], "test", 100)
    assert adapted == [example.label == "plant" for example in task.examples("test")]  # no calibration with an adapter


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_llama"])
def test_zero_shot_does_not_read_labels_of_other_splits(base: str, request: pytest.FixtureRequest) -> None:
    loaded, task = base_of(request.getfixturevalue(base)), toy_task()
    flipped = {"animal": "plant", "plant": "animal"}

    def turned(split: str) -> tuple[Example, ...]:
        return tuple(Example(text=e.text, label=flipped[e.label]) for e in getattr(task, split))

    other = task.model_copy(update={"train": turned("train"), "validation": turned("validation")})
    assert example_values(loaded, task, [None], "test", 16) == example_values(loaded, other, [None], "test", 16)


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_llama"])
def test_answers_do_not_depend_on_the_order_of_the_labels(base: str, request: pytest.FixtureRequest) -> None:
    folder, task = request.getfixturevalue(base), toy_task()
    arms = [random_artifact(layout_of(folder)), None]
    swapped = task.model_copy(update={"labels": task.labels[::-1]})
    found = example_values(base_of(folder), task, arms, "test", 100)
    assert found == example_values(base_of(folder), swapped, arms, "test", 100)
    assert 0 < np.sum(found[0]) < len(found[0]), "one label everywhere would hide an order that is mixed up"


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_llama"])
def test_a_trained_adapter_answers_better_than_the_base(base: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(base)
    training = CorpusConfig(steps=30, batch_size=16, learning_rate=2e-2, keep_last=1)
    artifact = train_adapter([base_of(folder)], toy_task(), layout_of(folder, 4, ALL_ROLES), training, 0)[-1]
    adapted, bare = example_values(base_of(folder), toy_task(), [artifact, None], "test", 100)
    assert np.mean(adapted) > 0.9 > 0.75 > np.mean(bare)


def test_limit_takes_the_first_examples(tiny_bert: Path) -> None:
    base, artifact = base_of(tiny_bert), random_artifact(layout_of(tiny_bert))
    [whole] = example_values(base, toy_task(), [artifact], "test", 100)
    assert example_values(base, toy_task(), [artifact], "test", 5) == [whole[:5]]
    assert len(whole) == len(toy_task().test)
