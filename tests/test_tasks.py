"""Tasks: splits fixed by a hash and disjoint, prompts held out, own folders checked line by line."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from oral_ray.errors import TaskError
from oral_ray.tasks import Example, Task, expand, list_tasks, load_task, registry
from oral_ray.tasks.kinds import concepts
from oral_ray.tasks.prompts import NUM_HELD_OUT, TEMPLATES, paraphrases
from oral_ray.tasks.task import ANSWER, NUM_SHOTS, balanced_order, split_of
from oral_ray.tasks.wordnet import lemma_gloss_pairs

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("task_id", list_tasks())
def test_a_shipped_task_has_disjoint_splits_with_all_its_labels(task_id: str):
    task = load_task(task_id)
    texts = {split: {example.text for example in task.examples(split)} for split in SPLITS}
    assert not texts["train"] & texts["validation"]
    assert not (texts["train"] | texts["validation"]) & texts["test"]
    for split in SPLITS:
        assert {example.label for example in task.examples(split)} == set(task.labels)
        assert all(split_of(text) == split for text in texts[split])
        counts = Counter(example.label for example in task.examples(split)[:100])
        assert min(counts.values()) >= 5, "a prefix is a sample of all labels"


@pytest.mark.parametrize("task_id", [*list_tasks(), "kind/bird", "not-kind/bird"])
def test_held_out_prompts_are_never_training_prompts_and_every_prompt_names_the_labels(task_id: str):
    task = load_task(task_id)
    assert len(task.held_out_prompts) == NUM_HELD_OUT
    assert len(task.prompts) == len(set(task.prompts)) == len(TEMPLATES) - NUM_HELD_OUT == 32
    assert not set(task.prompts) & set(task.held_out_prompts)
    assert task.prompt == task.prompts[0]
    for prompt in (*task.prompts, *task.held_out_prompts):
        assert all(label in prompt.lower() for label in task.labels)


def test_two_tasks_never_share_a_prompt_or_a_fingerprint():
    tasks = [load_task(task_id) for task_id in (*list_tasks(), "kind/bird", "not-kind/bird", "kind/tree")]
    prompts = [prompt for task in tasks for prompt in (*task.prompts, *task.held_out_prompts)]
    assert len(set(prompts)) == len(prompts)
    assert len({task.fingerprint for task in tasks}) == len(tasks)


def test_tasks_of_one_concept_differ_in_the_instruction_and_the_answers_and_in_nothing_else():
    asked, opposite = load_task("kind/bird"), load_task("not-kind/bird")
    for split in SPLITS:
        flipped = {(e.text, {"yes": "no", "no": "yes"}[e.label]) for e in asked.examples(split)}
        assert flipped == {(e.text, e.label) for e in opposite.examples(split)}
    answers = Counter(e.label for split in SPLITS for e in asked.examples(split))
    assert answers["yes"] == answers["no"] == len(concepts()["bird"])
    right = {e.text: e.label for e in asked.train}
    assert any("wading" in text and label == "yes" for text, label in right.items())


def test_no_two_concepts_are_nearly_the_same_and_an_unknown_one_is_named():
    sets = list(concepts().values())
    assert len(sets) == 160
    assert max(len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i]) <= 0.8
    with pytest.raises(TaskError, match=r"unknown concept 'bord'.*bird"):
        load_task("kind/bord")


def test_no_task_trains_on_a_test_text_of_another():
    tasks = [load_task(task_id) for task_id in (*list_tasks(), *expand(["kind/*", "not-kind/*"]))]
    trained = {e.text for task in tasks for e in (*task.train, *task.validation)}
    assert len(tasks) == 8 + 320
    assert not trained & {e.text for task in tasks for e in task.test}


@pytest.mark.parametrize(("name", "shots"), [("instructed", 0), ("few-shot", NUM_SHOTS)])
def test_a_framed_task_has_instruction_and_training_examples_before_every_text(name: str, shots: int):
    task, framed = load_task("kind/bird"), load_task(f"{name}/kind/bird")
    assert framed.id == f"{name}/kind/bird" and framed.labels == task.labels
    for split in SPLITS:
        for bare, example in zip(task.examples(split), framed.examples(split), strict=True):
            assert example.text.startswith(task.prompt + "\n") and example.text.endswith(bare.text)
            assert example.label == bare.label
            assert example.text.count(ANSWER) == shots
    shown = {e.text: e.label for e in task.train if f"{e.text}{ANSWER} {e.label}" in framed.test[0].text}
    assert Counter(shown.values()) == ({"yes": 2, "no": 2} if shots else {})


def test_the_text_that_evolves_a_base_is_in_no_task():
    glosses = {gloss for _, gloss in lemma_gloss_pairs()}
    used = {e.text for task_id in list_tasks() for split in SPLITS for e in load_task(task_id).examples(split)}
    assert len(lemma_gloss_pairs()) == 8000
    assert not glosses & used


def test_the_split_of_a_text_is_the_same_for_ever_and_about_60_15_25():
    pinned = {"a": "validation", "b": "train", "d": "test"}
    assert {text: split_of(text) for text in pinned} == pinned
    counts = Counter(split_of(f"text {number}") for number in range(4000))
    assert abs(counts["train"] / 4000 - 0.60) < 0.03
    assert abs(counts["validation"] / 4000 - 0.15) < 0.03


def test_a_balanced_order_does_not_depend_on_the_order_given():
    examples = [Example(text=str(number), label="a") for number in range(50)]
    assert balanced_order(examples) == balanced_order(examples[::-1])
    assert balanced_order(examples) != tuple(examples)


def test_paraphrases_start_with_a_capital_and_list_the_labels():
    prompts, held_out = paraphrases("a {brace}", ("x", "y", "z"))
    assert all("x, y or z" in prompt.replace("X, y", "x, y") and "a {brace}" in prompt.lower() for prompt in prompts)
    assert all(prompt[0].isupper() for prompt in (*prompts, *held_out))


def task_of(**changed: Any) -> Task:
    examples = {split: (Example(text=f"{split} text", label="a"),) for split in SPLITS}
    return Task(**{"id": "t", "labels": ("a", "b"), "prompts": ("p",), "held_out_prompts": ("h",)} | examples | changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"labels": ("a",)}, "at least two different labels"),
        ({"labels": ("a", "a")}, "at least two different labels"),
        ({"prompts": ()}, "has no prompt"),
        ({"held_out_prompts": ("p",)}, "'p' is both a training prompt and held out"),
        ({"test": (Example(text="x", label="c"),)}, "label 'c' is none of"),
        ({"test": (Example(text="train text", label="a"),)}, "'train text' is in the splits train and test"),
        ({"validation": (Example(text="test text", label="b"),)}, "in the splits validation and test"),
    ],
)
def test_a_task_that_would_make_scores_worthless_is_refused(changed: dict[str, Any], reason: str):
    with pytest.raises(ValidationError) as caught:
        task_of(**changed)
    assert reason in str(caught.value)


def test_an_empty_split_is_an_error_when_it_is_asked_for():
    task = task_of(test=())
    assert [example.text for example in task.examples("train")] == ["train text"]
    with pytest.raises(TaskError, match="task 't' has no test examples"):
        task.examples("test")


def test_another_example_or_prompt_is_another_fingerprint():
    tasks = [task_of(), task_of(prompts=("q",)), task_of(test=()), task_of(labels=("b", "a"))]
    assert len({task.fingerprint for task in tasks}) == 4
    assert task_of().fingerprint == task_of().fingerprint


def write_folder(folder: Path, header: str = 'labels = ["cat", "dog"]', **lines: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "task.toml").write_text(header)
    for split in SPLITS:
        default = json.dumps({"text": f"{split} text", "label": "cat"}).encode() + b"\n"
        (folder / f"{split}.jsonl").write_bytes(lines.get(split, default))
    return folder


def test_a_folder_of_ones_own_is_a_task(tmp_path: Path):
    header = 'labels = ["cat", "dog"]\ntext = "a mail"\nprompts = ["Cat or dog?"]'
    lines = '{"text": "a\u2028b", "label": "dog"}\r\n{"text": "é", "label": "cat"}'.encode()
    task = load_task(str(write_folder(tmp_path / "mine", header, train=lines)))
    assert (task.id, task.labels, task.prompt) == ("folder/mine", ("cat", "dog"), "Cat or dog?")
    assert [(example.text, example.label) for example in task.train] == [("a\u2028b", "dog"), ("é", "cat")]
    assert "a mail" in task.prompts[1]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"3",
        b"[]",
        b'{"text": "x"}',
        b'{"text": 3, "label": "cat"}',
        b'{"text": "x", "label": "cat", "n": 1}',
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path, line: bytes):
    lines = b'{"text": "x", "label": "cat"}\n' + line + b'\n{"text": "y", "label": "cat"}\n'
    with pytest.raises(TaskError, match=r"mine/validation.jsonl:2: .*'text': ..., 'label'"):
        load_task(str(write_folder(tmp_path / "mine", validation=lines)))


@pytest.mark.parametrize(
    ("header", "lines", "reason"),
    [
        ("labels = ", b"", "Invalid value"),
        ("", b"", "labels"),
        ("labels = []", b"", "labels"),
        ('labels = ["cat"]', b"", "labels"),
        ('labels = ["cat", "dog"]\nlabel = 3', b"", "label"),
        ('labels = ["cat", "dog"]', b'{"text": "x", "label": "cow"}', "label 'cow' is none of"),
        ('labels = ["cat", "dog"]', b'{"text": "\xff", "label": "cat"}', "utf-8"),
    ],
)
def test_a_folder_that_is_no_task_is_an_error_that_names_it(tmp_path: Path, header: str, lines: bytes, reason: str):
    with pytest.raises(TaskError) as caught:
        load_task(str(write_folder(tmp_path / "mine", header, test=lines)))
    assert str(tmp_path / "mine") in str(caught.value)
    assert reason in str(caught.value)


def test_a_missing_file_of_a_folder_is_named(tmp_path: Path):
    folder = write_folder(tmp_path / "mine")
    (folder / "validation.jsonl").unlink()
    with pytest.raises(TaskError, match=r"mine' has no validation.jsonl"):
        load_task(str(folder))


@pytest.mark.parametrize("task_id", ["", "wordnet", "wordnet/", "wordnet/none", "nowhere/none", "/etc"])
def test_an_unknown_task_is_an_error_that_lists_what_there_is(task_id: str):
    with pytest.raises(TaskError) as caught:
        load_task(task_id)
    assert "unknown" in str(caught.value)
    assert "society" in str(caught.value)


def test_a_shuffled_task_keeps_everything_but_which_answer_belongs_to_which_text():
    task, control = load_task("wordnet/matter"), load_task("shuffled/wordnet/matter")
    assert control.id == "shuffled/wordnet/matter" and control.fingerprint != task.fingerprint
    assert [e.text for e in control.train] == [e.text for e in task.train]
    assert Counter(e.label for e in control.train) == Counter(e.label for e in task.train)
    same = sum(a.label == b.label for a, b in zip(control.train, task.train, strict=True)) / len(task.train)
    assert same < 0.4, "four labels: a quarter is right by chance"
    assert (control.validation, control.test) == (task.validation, task.test)
    assert load_task("shuffled/wordnet/matter") == control


def test_a_source_that_is_named_in_the_registry_gives_tasks_and_every_variant_of_them(monkeypatch: pytest.MonkeyPatch):
    def load_colour(name: str) -> Task:
        if name != "warm":
            raise TaskError(f"unknown colour {name!r}; there is warm")
        examples = {split: (Example(text=f"red {split}", label="yes"),) for split in SPLITS}
        return Task(id="colour/warm", labels=("yes", "no"), prompts=("Is it warm?",), held_out_prompts=(), **examples)

    monkeypatch.setitem(registry.SOURCES, "colour", registry.TaskSource(lambda: ("warm",), load_colour))
    assert registry.is_shipped("instructed/colour/warm")
    assert load_task("colour/warm").id == "colour/warm"
    assert load_task("instructed/colour/warm").examples("test")[0].text == "Is it warm?\nred test"
    with pytest.raises(TaskError, match="unknown colour 'cold'; there is warm"):
        registry.is_shipped("colour/cold")
