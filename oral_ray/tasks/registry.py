"""The one place that turns a task id into a task: `wordnet/<name>`, `bigbench/<name>`, `kind/<concept>`,
`not-kind/<concept>`, or the path of a task folder, whose task is called `folder/<name>`.

Of any of them, `shuffled/<task id>` is the control with its training answers dealt out anew, `instructed/<task id>` has
the instruction before every text, `few-shot/<task id>` four answered examples too.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from oral_ray.errors import TaskError
from oral_ray.tasks import bigbench, kinds
from oral_ray.tasks.folder import HEADER, SOURCE, load_task_folder
from oral_ray.tasks.task import Task, few_shot, instructed, shuffled
from oral_ray.tasks.wordnet import TASKS, load_wordnet_task

_VARIANTS: dict[str, Callable[[Task], Task]] = {"shuffled": shuffled, "instructed": instructed, "few-shot": few_shot}


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where tasks `<source>/<name>` come from: which names there are, and how one is loaded (TaskError for none)."""

    names: Callable[[], Collection[str]]
    load: Callable[[str], Task]


SOURCES: dict[str, TaskSource] = {
    "wordnet": TaskSource(lambda: TASKS, load_wordnet_task),
    "bigbench": TaskSource(lambda: bigbench.TASKS, bigbench.load_bigbench_task),
    **{family: TaskSource(kinds.concepts, partial(kinds.load_kind_task, family)) for family in kinds.FAMILIES},
}
"""The sources that ship; a new one is a file beside this one and a line here."""


def list_tasks() -> tuple[str, ...]:
    """The ids of the tasks that ship with oral_ray."""
    return tuple(f"wordnet/{name}" for name in TASKS)


def expand(task_ids: Iterable[str]) -> list[str]:
    """The ids with `kind/*` and `not-kind/*` written out, `instructed/kind/*` too, each once, in order."""
    found = []
    for task_id in task_ids:
        variant, bare = split_variant(task_id)
        family, _, name = bare.partition("/")
        every = family in kinds.FAMILIES and name == "*"
        found += [f"{variant}{family}/{concept}" for concept in kinds.concepts()] if every else [task_id]
    return list(dict.fromkeys(found))


def subject(task_id: str) -> str:
    """What a task is about: the same for `kind/bird`, `not-kind/bird` and `instructed/kind/bird`, whose examples are."""
    bare = split_variant(task_id)[1]
    family, _, name = bare.partition("/")
    return f"{kinds.FAMILIES[0]}/{name}" if family in kinds.FAMILIES else bare


def split_variant(task_id: str) -> tuple[str, str]:
    """`instructed/` and `kind/bird` of `instructed/kind/bird`."""
    source, slash, rest = task_id.partition("/")
    if source not in _VARIANTS or not rest:
        return "", task_id
    variant, bare = split_variant(rest)
    return source + slash + variant, bare


def is_shipped(task_id: str) -> bool:
    """Whether an id, be it `instructed/` or another variant, is of a task that comes with oral_ray; TaskError names those
    that there are where it is none of its family."""
    source, _, name = split_variant(task_id)[1].partition("/")
    if source not in SOURCES or not name:
        return False
    if name not in SOURCES[source].names():
        SOURCES[source].load(name)
    return True


def folder_of(path: str) -> Path:
    """The folder that a path names, `~` written out."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def read_folder(path: str) -> Task:
    """The task of a folder; TaskError lists what else there is where the folder is none."""
    folder = folder_of(path)
    try:
        is_folder, is_task = bool(path) and folder.is_dir(), bool(path) and (folder / HEADER).exists()
    except OSError as error:
        raise TaskError(f"task folder {path[:200]!r} cannot be read: {error.strerror}") from None
    if is_task:
        return load_task_folder(folder)
    if path.startswith(f"{SOURCE}/"):
        why = f"that is what a run calls the task of a folder; give the folder's path, from here ./{path} if it is one"
    elif is_folder:
        why = f"the folder has no {HEADER}"
    else:
        why = f"no such folder (looked in {Path.cwd()})"
    raise TaskError(
        f"unknown task {path!r}: {why}; known: {', '.join(list_tasks())}, bigbench/{{{','.join(bigbench.TASKS)}}}, "
        f"kind/CONCEPT, not-kind/CONCEPT, or a folder with a {HEADER}"
    )


def load_task(task_id: str, own: Callable[[str], Task] = read_folder) -> Task:
    """Load a task by id, one that does not ship by `own`: from its folder, or where a run keeps it (`pipeline/own_tasks`).

    TaskError lists what exists.
    """
    variant, bare = split_variant(task_id)
    source, _, name = bare.partition("/")
    task = SOURCES[source].load(name) if source in SOURCES and name else own(bare)
    for outer in reversed(variant.split("/")[:-1]):
        task = _VARIANTS[outer](task)
    return task
