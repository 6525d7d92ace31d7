"""The one place that turns a task id into a task: `wordnet/<name>`, `bigbench/<name>`, `kind/<concept>`,
`not-kind/<concept>`, or the path of a task folder.

Of any of them, `shuffled/<task id>` is the control with its training answers dealt out anew, `instructed/<task id>` has
the instruction before every text, `few-shot/<task id>` four answered examples too.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from oral_ray.errors import TaskError
from oral_ray.tasks import bigbench, kinds
from oral_ray.tasks.folder import load_task_folder
from oral_ray.tasks.task import Task, few_shot, instructed, shuffled
from oral_ray.tasks.wordnet import TASKS, load_wordnet_task

_VARIANTS: dict[str, Callable[[Task], Task]] = {"shuffled": shuffled, "instructed": instructed, "few-shot": few_shot}


def list_tasks() -> tuple[str, ...]:
    """The ids of the tasks that ship with oral_ray."""
    return tuple(f"wordnet/{name}" for name in TASKS)


def expand(task_ids: Iterable[str]) -> list[str]:
    """The ids with `kind/*` and `not-kind/*` written out, `instructed/kind/*` too, each once, in order."""
    found = []
    for task_id in task_ids:
        variant, bare = _split_variant(task_id)
        family, _, name = bare.partition("/")
        every = family in kinds.FAMILIES and name == "*"
        found += [f"{variant}{family}/{concept}" for concept in kinds.concepts()] if every else [task_id]
    return list(dict.fromkeys(found))


def subject(task_id: str) -> str:
    """What a task is about: the same for `kind/bird`, `not-kind/bird` and `instructed/kind/bird`, whose examples are."""
    bare = _split_variant(task_id)[1]
    family, _, name = bare.partition("/")
    return f"{kinds.FAMILIES[0]}/{name}" if family in kinds.FAMILIES else bare


def _split_variant(task_id: str) -> tuple[str, str]:
    """`instructed/` and `kind/bird` of `instructed/kind/bird`."""
    source, slash, rest = task_id.partition("/")
    if source not in _VARIANTS:
        return "", task_id
    variant, bare = _split_variant(rest)
    return source + slash + variant, bare


def load_task(task_id: str) -> Task:
    """Load a task by id; TaskError lists what exists."""
    source, _, name = task_id.partition("/")
    if source == "wordnet" and name:
        return load_wordnet_task(name)
    if source in _VARIANTS and name:
        return _VARIANTS[source](load_task(name))
    if source == "bigbench" and name:
        return bigbench.load_bigbench_task(name)
    if source in kinds.FAMILIES and name:
        return kinds.load_kind_task(source, name)
    if (Path(task_id) / "task.toml").is_file():
        return load_task_folder(Path(task_id))
    raise TaskError(
        f"unknown task {task_id!r}; known: {', '.join(list_tasks())}, "
        f"bigbench/{{{','.join(bigbench.TASKS)}}}, kind/CONCEPT, not-kind/CONCEPT, or a folder with a task.toml"
    )
