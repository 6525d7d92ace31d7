"""BIG-bench tasks from a planted package: our labels, our splits, one answer an example."""

import json
from pathlib import Path
from typing import Any

import pytest

from oral_ray.errors import TaskError
from oral_ray.tasks import bigbench, load_task
from oral_ray.tasks.bigbench import TASKS
from oral_ray.tasks.prompts import NUM_HELD_OUT, answer_paraphrases

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def scored(text: str, **scores: float) -> dict[str, Any]:
    return {"input": text, "target_scores": scores}


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, **examples: list[dict[str, Any]]) -> None:
    for name, items in examples.items():
        path = folder / TASKS[name.replace("_", "-")].file / "task.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"examples": items}))
    monkeypatch.setattr(bigbench, "unpacked", lambda requirement, pattern: folder)
    bigbench._items.cache_clear()
    bigbench.load_bigbench_task.cache_clear()


def test_a_choice_has_our_labels_and_cut_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = ("add_to_playlist", "get_weather")
    items = [
        scored(f"Utterance: {a}{b} please.", **{label: float(label == there[(a < b)]) for label in there})
        for a in LETTERS
        for b in LETTERS
    ]
    plant(tmp_path, monkeypatch, intent=[*items, items[0], scored("Utterance: both", add_to_playlist=1, get_weather=1)])
    task = load_task("bigbench/intent")
    examples = [example for split in ("train", "validation", "test") for example in task.examples(split)]  # type: ignore[arg-type]
    assert task.labels[0] == "playlist" and len(task.labels) == 7
    assert {example.text: example.label for example in examples} == {
        f"{a}{b} please.": "weather" if a < b else "playlist" for a in LETTERS for b in LETTERS
    }
    assert len(examples) == 26 * 26, "an example twice is one, one with two answers is none"
    assert len(task.train) > 2 * len(task.validation) and len(task.test) > 100


def test_free_text_has_no_labels_and_its_own_wordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items = [{"input": f"verb{a}{b}", "target": f"verb{a}{b}ed"} for a in LETTERS for b in LETTERS]
    plant(tmp_path, monkeypatch, past_tense=items, count=[{"input": "a cup, a pen", "target": ["two", "2"]}])
    task = load_task("bigbench/past-tense")
    assert task.labels == ()
    assert all(example.label == f"{example.text}ed" for example in task.examples("train"))
    assert task.prompt == "Given an English verb, write its past tense."
    assert len(task.prompts) == 32 and len(task.held_out_prompts) == NUM_HELD_OUT
    assert [*bigbench._labelled(TASKS["count"])] == [("a cup, a pen", "two")]


def test_answer_wordings_are_distinct_and_filled():
    train, held_out = answer_paraphrases("a noun", "its plural")
    assert len({*train, *held_out}) == 40
    assert all("a noun" in wording.lower() and "its plural" in wording for wording in (*train, *held_out))


@pytest.mark.parametrize("name", TASKS)
def test_labels_of_a_source_are_different_words(name: str):
    labels = TASKS[name].labels
    assert (labels is None) == bool(TASKS[name].answer)
    assert labels is None or len({*labels}) == len({*labels.values()}) == len(labels) >= 2


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(TaskError, match=r"unknown BIG-bench task 'none'; there are adjectives, ask"):
        load_task("bigbench/none")
