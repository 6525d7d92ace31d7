"""Tasks from WordNet 3.1: which lexicographer class does a gloss belong to? The data ships with its notice.

Source: Princeton University, WordNet 3.1 (see data/wordnet/LICENSE); `infra/dev/build_wordnet.py` made the tables.
`lemma_gloss_pairs` are other synsets than the tasks', used as text to continue training a base.
"""

import gzip
from functools import cache
from importlib import resources

from oral_ray.errors import TaskError
from oral_ray.tasks.prompts import paraphrases
from oral_ray.tasks.task import Example, Task, balanced_order, split_of

# task -> {label as the model reads it: lexicographer class}
TASKS: dict[str, dict[str, str]] = {
    "matter": {"artifact": "noun.artifact", "substance": "noun.substance", "food": "noun.food", "object": "noun.object"},
    "living": {"animal": "noun.animal", "plant": "noun.plant", "person": "noun.person", "body": "noun.body"},
    "happening": {
        "act": "noun.act", "event": "noun.event", "process": "noun.process", "phenomenon": "noun.phenomenon",
    },
    "mind": {
        "cognition": "noun.cognition", "feeling": "noun.feeling", "attribute": "noun.attribute", "state": "noun.state",
    },
    "society": {
        "communication": "noun.communication", "group": "noun.group", "possession": "noun.possession",
        "location": "noun.location",
    },
    "measure": {"quantity": "noun.quantity", "time": "noun.time", "shape": "noun.shape", "relation": "noun.relation"},
    "doing": {"change": "verb.change", "contact": "verb.contact", "motion": "verb.motion", "creation": "verb.creation"},
    "dealing": {
        "social": "verb.social", "communication": "verb.communication", "thought": "verb.cognition",
        "possession": "verb.possession",
    },
}  # fmt: skip


def load_wordnet_task(name: str) -> Task:
    """The task of this name; TaskError lists the names there are."""
    if name not in TASKS:
        raise TaskError(f"unknown WordNet task {name!r}; there are {', '.join(sorted(TASKS))}")
    label_of = {cls: label for label, cls in TASKS[name].items()}
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for cls, _, gloss in rows("glosses.tsv.gz"):
        if cls in label_of:
            splits[split_of(gloss)].append(Example(text=gloss, label=label_of[cls]))
    prompts, held_out = paraphrases("a dictionary definition", tuple(TASKS[name]))
    return Task(
        id=f"wordnet/{name}",
        labels=tuple(TASKS[name]),
        prompts=prompts,
        held_out_prompts=held_out,
        train=balanced_order(splits["train"]),
        validation=balanced_order(splits["validation"]),
        test=balanced_order(splits["test"]),
    )


def lemma_gloss_pairs() -> tuple[tuple[str, str], ...]:
    """8,000 (lemma, gloss) pairs of synsets that no task uses, in file order."""
    return tuple((lemma, gloss) for lemma, gloss in rows("pairs.tsv.gz"))


@cache
def rows(name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of a table that ships here."""
    data = (resources.files("oral_ray.tasks") / "data" / "wordnet" / name).read_bytes()
    return tuple(tuple(line.split("\t")) for line in gzip.decompress(data).decode().splitlines())
