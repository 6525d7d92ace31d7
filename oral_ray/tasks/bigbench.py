"""Tasks from BIG-bench (Srivastava et al., arXiv 2206.04615): ids `bigbench/<name>`, choices and free text.

The data comes from the PyPI package `bigbench` at run time and is never stored in the repository: its files carry a
canary against training on them, and their licences differ. The splits are ours, by the hash of the text; of large tasks
we take `MAX_EXAMPLES`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from oral_ray.errors import TaskError
from oral_ray.local.packages import unpacked
from oral_ray.tasks.prompts import answer_paraphrases, paraphrases
from oral_ray.tasks.task import Example, Split, Task, balanced_order, split_of

PACKAGE = "bigbench==1.0.0"
MAX_EXAMPLES: dict[Split, int] = {"train": 2000, "validation": 500, "test": 1000}
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a task's examples are: file, what an input is called, the labels it has there by the word the model reads.

    Without labels the answer is free text, and `answer` is what it is called. `text` cuts an input to what matters.
    """

    file: str
    given: str
    labels: dict[str, str] | None = None
    answer: str = ""
    text: Callable[[str], str] = str.strip


def _after(prefix: str, until: str = "") -> Callable[[str], str]:
    def cut(text: str) -> str:
        text = text[text.find(prefix) + len(prefix) if prefix in text else 0 :]
        return (text[: text.find(until)] if until and until in text else text).strip()

    return cut


def _same(*labels: str) -> dict[str, str]:
    return {label: label for label in labels}


TASKS: dict[str, Source] = {
    "intent": Source(
        "intent_recognition", "a spoken request to an assistant",
        {"playlist": "add_to_playlist", "restaurant": "book_restaurant", "weather": "get_weather",
         "music": "play_music", "cinema": "search_screening_event", "title": "search_creative_work",
         "rating": "rate_book"},
        text=_after("Utterance:"),
    ),
    "sentiment": Source(
        "multiemo/reviews_sentence_en", "a sentence of a student's review",
        _same("positive", "negative", "neutral", "ambivalent"),
    ),
    "hotel": Source(
        "multiemo/hotels_sentence_en", "a sentence about a hotel",
        _same("positive", "negative", "neutral", "ambivalent"),
    ),
    "color": Source(
        "color/rgb", "an RGB triple",
        _same("black", "blue", "brown", "gray", "green", "orange", "purple", "red", "white", "yellow"),
        text=_after("representation:", "?"),
    ),
    "question": Source(
        "natural_instructions/subtask046_miscellaenous_question_typing", "a quiz question with its answer",
        {"entity": "Entity.", "human": "Humans.", "date": "Date.", "quantity": "Quantity.", "event": "Event.",
         "location": "Location."},
        text=_after("Question:"),
    ),
    "adjectives": Source(
        "hyperbaton", "two phrases, a and b, with adjectives in two orders", _same("a", "b"), text=_after("order:", "?"),
    ),
    "claim": Source(
        "fact_checker/fever", "a claim about the world", _same("true", "false"), text=_after("was made:", "\nQ:"),
    ),
    "parentheses": Source(
        "cs_algorithms/valid_parentheses", "a sequence of brackets", {"valid": "Valid", "invalid": "Invalid"},
    ),
    "past-tense": Source("linguistic_mappings/past_tense_json", "an English verb", answer="its past tense"),
    "plural": Source("linguistic_mappings/plural_json", "an English noun", answer="its plural"),
    "ask": Source("linguistic_mappings/question_formation_json", "a statement", answer="it as a question"),
    "negate": Source("linguistic_mappings/sentence_negation_json", "a statement", answer="its negation"),
    "date": Source("unnatural_in_context_learning/dates_unnatural_form", "a marked date", answer="it as an ISO date"),
    "element": Source("periodic_elements/subtask_1", "a question about protons", answer="the name of the element"),
    "count": Source("object_counting", "a list of things somebody has", answer="how many they are, in words"),
    "sort": Source("word_sorting", "two words", answer="them in alphabetical order"),
}  # fmt: skip


@cache
def load_bigbench_task(name: str) -> Task:
    """The task of this name, fetched when it is asked for the first time; TaskError lists the names there are."""
    if name not in TASKS:
        raise TaskError(f"unknown BIG-bench task {name!r}; there are {', '.join(sorted(TASKS))}")
    source = TASKS[name]
    splits: dict[Split, dict[str, Example]] = {split: {} for split in MAX_EXAMPLES}
    for text, label in _labelled(source):
        splits[split_of(text)].setdefault(text, Example(text=text, label=label))
    if source.labels:
        prompts, held_out = paraphrases(source.given, tuple(source.labels))
    else:
        prompts, held_out = answer_paraphrases(source.given, source.answer)
    kept: dict[Split, tuple[Example, ...]] = {
        split: balanced_order(list(found.values()))[: MAX_EXAMPLES[split]] for split, found in splits.items()
    }
    return Task(
        id=f"bigbench/{name}",
        labels=tuple(source.labels or ()),
        prompts=prompts,
        held_out_prompts=held_out,
        **kept,
    )


def _labelled(source: Source) -> Iterator[tuple[str, str]]:
    """(text, label) of every example that has one answer."""
    label_of = {there: label for label, there in (source.labels or {}).items()}
    for item in _items(source.file):
        text, answer = source.text(item["input"]), _answer(item, source)
        if text and answer and (not label_of or answer in label_of):
            yield text, label_of.get(answer, answer)


def _answer(item: Item, source: Source) -> str | None:
    if source.labels and (scores := item.get("target_scores")):
        best = [label for label, score in scores.items() if score == max(scores.values())]
        return best[0] if len(best) == 1 else None
    target = item.get("target")
    if not isinstance(target, list):
        return target
    return target[0] if len(target) == 1 or not source.labels else None


@cache
def _items(file: str) -> tuple[Item, ...]:
    files = "|".join(sorted({source.file for source in TASKS.values()}))
    folder = unpacked(PACKAGE, rf".*/benchmark_tasks/((?:{files})/task\.json)")
    return tuple(json.loads((folder / file / "task.json").read_text(encoding="utf-8"))["examples"])
