"""The tasks of a configuration: those that ship by name, those of one's own from the store.

Where a job starts, every task folder of its configuration is read, checked and put into the store, and is called
`folder/<name>` from there on; workers read it from the store, on whatever machine they run.

    config = resolve_tasks(config, objects)              # a relative path counts from this process's folder
    tasks = Tasks(objects, config.tasks.folders)
    task = tasks.get("folder/spam")                      # anywhere
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from oral_ray.config import Config, fingerprint
from oral_ray.config.place import in_submitted_job
from oral_ray.errors import ConditionError, ConfigError, TaskError
from oral_ray.generator.condition import check_prompt
from oral_ray.objects import Objects
from oral_ray.store.tasks import get_task, put_task
from oral_ray.tasks import Example, Task, expand, folder_of, is_shipped, load_task, read_folder, split_variant, subject
from oral_ray.tasks.folder import SOURCE

_MAX_KNOWN = 64  # tasks in memory: a functional phase may have hundreds, which it reads once
_LISTS = ("ids", "further", "unseen")


class Tasks:
    """The tasks of a configuration that `resolve_tasks` has gone through, each read once."""

    def __init__(self, objects: Objects, folders: Mapping[str, str]) -> None:
        self._objects, self._folders = objects, folders
        # By id and fingerprint of the folder (empty for what ships): as they are asked for, and as the store has them.
        self._known: dict[tuple[str, str], Task] = {}
        self._stored: dict[tuple[str, str], Task] = {}

    def over(self, folders: Mapping[str, str]) -> "Tasks":
        """The tasks of another configuration over the same store, with what is known of them."""
        other = Tasks(self._objects, folders)
        other._known, other._stored = self._known, self._stored
        return other

    def get(self, task_id: str) -> Task:
        """The task of an id; TaskError lists what exists."""
        key = (task_id, self._folders.get(split_variant(task_id)[1], ""))
        if key not in self._known:
            if len(self._known) >= _MAX_KNOWN:
                self._known.pop(next(iter(self._known)))
            self._known[key] = load_task(task_id, self._own)
        return self._known[key]

    def is_own(self, task_id: str) -> bool:
        """Whether a task is one of the user's own."""
        return split_variant(task_id)[1] in self._folders

    def subject(self, task_id: str) -> str:
        """What a task is about: of one's own its examples, so that a copy of a folder is no other task; else `subject`."""
        if not self.is_own(task_id):
            return subject(task_id)
        task = self.get(split_variant(task_id)[1])
        splits = (task.train, task.validation, task.test)
        return fingerprint(*(sorted(_said_of(example) for example in split) for split in splits))

    def _own(self, task_id: str) -> Task:
        if task_id not in self._folders:
            raise TaskError(
                f"unknown task {task_id!r}: the run has no such folder in its store (tasks.folders has "
                f"{', '.join(self._folders) or 'none'}); name folders in tasks.ids, further or unseen, and begin with "
                "resolve_tasks"
            )
        key = (task_id, self._folders[task_id])  # several variants have one task of the store
        if key not in self._stored:
            self._stored[key] = get_task(self._objects, *key)
        return self._stored[key]


def resolve_tasks(config: Config, objects: Objects, keep: bool = True) -> Config:
    """The configuration with its task folders in the store, and named by their ids; a second time changes nothing.

    One folder is one task, however it is spelled. TaskError names, before anything is written, each folder that is
    missing or malformed, two that are called the same, and unknown ids. Without `keep` nothing is written: for plans.
    """
    given = {name: getattr(config.tasks, name) for name in _LISTS}
    asked = [*given["ids"], *expand((*given["further"], *given["unseen"]))]
    own = dict.fromkeys(split_variant(task_id)[1] for task_id in asked if not is_shipped(task_id))
    before = {task_id: config.tasks.folders[task_id] for task_id in own if task_id in config.tasks.folders}
    tasks = _read([path for path in own if path not in before])
    folders = before | {task.id: task.fingerprint for task in tasks.values()}
    if changed := [task_id for task_id in before if folders[task_id] != before[task_id]]:
        raise TaskError(
            f"{changed[0]!r} in tasks.folders has another content than the folder of that name; leave one of them out"
        )
    renamed = {
        name: tuple(dict.fromkeys(_renamed(task_id, tasks) for task_id in task_ids)) for name, task_ids in given.items()
    }
    resolved = config.model_copy(update={"tasks": config.tasks.model_copy(update={**renamed, "folders": folders})})
    for task in tasks.values() if keep else ():
        put_task(objects, task)
    stored = Tasks(objects, folders)
    for task_id in before:
        stored.get(task_id)  # refused here rather than by a worker
    return resolved


def _said_of(example: Example) -> list[str]:
    """An example as its text and its answer: a label, or an image by its digest."""
    return [example.text, example.label, *([example.image.digest] if example.image else [])]


def check_unseen(config: Config, tasks: Tasks) -> None:
    """ConfigError when a task that no training may see is in the corpus, be it as its opposite or `instructed/`."""
    if pair := unseen_among(config, tasks, config.tasks.ids):
        raise ConfigError(
            f"'tasks.unseen': {pair[0]!r} has the examples of {pair[1]!r} in tasks.ids; what the corpus holds is not "
            "unseen, remove one"
        )


def unseen_among(config: Config, tasks: Tasks, trained: Iterable[str]) -> tuple[str, str] | None:
    """The first of `tasks.unseen` that has the examples of one of these tasks, and that one."""
    known = {tasks.subject(task_id): task_id for task_id in trained}
    for task_id in expand(config.tasks.unseen):
        if found := known.get(tasks.subject(task_id)):
            return task_id, found
    return None


def _read(paths: Collection[str]) -> dict[str, Task]:
    """The tasks of folders by path as it was given; one TaskError for all that is wrong."""
    tasks: dict[str, Task] = {}
    faults: list[str] = []
    where: dict[str, Path] = {}  # id -> its folder, links followed
    called: dict[Path, str] = {}  # the other way round
    for path in paths:
        try:
            task = _checked(path)
        except TaskError as error:
            faults.append(str(error))
            continue
        folder = folder_of(path).resolve()
        if where.setdefault(task.id, folder) != folder:
            faults.append(
                f"the folders {str(where[task.id])!r} and {str(folder)!r} are both called {task.id!r}; rename one, or set "
                'name = "..." in its task.toml'
            )
        if called.setdefault(folder, task.id) != task.id:
            faults.append(
                f"the folder {str(folder)!r} is named twice, as {called[folder]!r} and as {task.id!r}; name it once"
            )
        tasks[path] = task
    if faults:
        raise TaskError("; ".join(faults))
    return tasks


def _checked(path: str) -> Task:
    try:
        task = read_folder(path)
        for prompt in (*task.prompts, *task.held_out_prompts):
            check_prompt(prompt)
    except ConditionError as error:
        raise TaskError(f"task folder {path!r}: a wording of its instruction, with all labels in it: {error}") from None
    except TaskError as error:
        if path.startswith(f"{SOURCE}/") or folder_of(path).is_absolute() or not in_submitted_job():
            raise
        raise TaskError(
            f"{error}; a submitted job looks in its copy of the folder that --working-dir names, which is without what "
            ".gitignore leaves out; give an absolute path that the cluster's head has, or take the folder along"
        ) from None
    return task


def _renamed(task_id: str, tasks: dict[str, Task]) -> str:
    variant, bare = split_variant(task_id)
    return variant + (tasks[bare].id if bare in tasks else bare)
