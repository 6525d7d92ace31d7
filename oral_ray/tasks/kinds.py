"""Yes-or-no questions about one kind of text: does a gloss define a kind of `bird`? The instruction alone tells them apart.

`kind/<concept>` is answered yes for glosses of WordNet's noun synsets below the concept, `not-kind/<concept>` for the
others, on the very same examples: half of each, both answers possible for any gloss, so whoever ignores the instruction
is right half of the time. Source: WordNet 3.1 (see data/wordnet/LICENSE), table made by `infra/dev/build_wordnet.py`.
"""

import hashlib
from functools import cache

from oral_ray.errors import TaskError
from oral_ray.tasks.prompts import condition_paraphrases
from oral_ray.tasks.task import Example, Split, Task, balanced_order, split_of
from oral_ray.tasks.wordnet import rows

FAMILIES = ("kind", "not-kind")
LABELS = ("yes", "no")


@cache
def concepts() -> dict[str, frozenset[int]]:
    """Every concept, largest first, with the rows of its glosses."""
    return {name: frozenset(map(int, members.split())) for name, members in rows("kinds.tsv.gz")}


def load_kind_task(family: str, concept: str) -> Task:
    """The task of one concept; TaskError lists the concepts there are."""
    if concept not in concepts():
        raise TaskError(f"unknown concept {concept!r} of {family}/; there are {', '.join(concepts())}")
    members = concepts()[concept]
    glosses = {i: gloss for i, (cls, _, gloss) in enumerate(rows("glosses.tsv.gz")) if cls.startswith("noun.")}
    others = sorted(glosses.keys() - members, key=lambda i: _rank(concept, glosses[i]))[: len(members)]
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for i in [*members, *others]:
        label = LABELS[(i in members) == (family == "not-kind")]
        splits[split_of(glosses[i])].append(Example(text=glosses[i], label=label))
    verb = "defines" if family == "kind" else "does not define"
    prompts, held_out = condition_paraphrases("the dictionary definition", f"{verb} a kind of {concept}")
    return Task(
        id=f"{family}/{concept}",
        labels=LABELS,
        prompts=prompts,
        held_out_prompts=held_out,
        train=balanced_order(splits["train"]),
        validation=balanced_order(splits["validation"]),
        test=balanced_order(splits["test"]),
    )


def _rank(concept: str, gloss: str) -> bytes:
    return hashlib.sha256(f"{concept}/{gloss}".encode()).digest()
