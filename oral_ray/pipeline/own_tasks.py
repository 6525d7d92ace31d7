"""Tasks of one's own: where a job starts, every task folder of its configuration is read, checked and put into the store,
and is called `folder/<name>` from there on; workers read it from the store, on whatever machine they run.

    config = enter_tasks(config)            # a relative path counts from this process's folder
    task = task_of(config, "folder/spam")   # anywhere
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.tokenizer import load_tokenizer
from oral_ray.config import Config, StoreConfig, canonical_json, fingerprint
from oral_ray.config.place import in_submitted_job
from oral_ray.errors import ConditionError, TaskError
from oral_ray.generator.condition import check_prompt
from oral_ray.modalities import modality_of
from oral_ray.objects import open_objects
from oral_ray.store.tasks import get_task, put_task
from oral_ray.tasks import Task, expand, folder_of, is_shipped, load_task, read_folder, split_variant, subject
from oral_ray.tasks.folder import SOURCE

_LISTS = ("ids", "further", "unseen")


def task_of(config: Config, task_id: str) -> Task:
    """The task of an id of a configuration that `enter_tasks` has gone through."""
    return load_task(task_id, partial(_entered, config.store, config.tasks.folders))


def enter_tasks(config: Config, keep: bool = True) -> Config:
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
    entered = config.model_copy(update={"tasks": config.tasks.model_copy(update={**renamed, "folders": folders})})
    objects = open_objects(config.store)
    for task in tasks.values() if keep else ():
        put_task(objects, task)
    for task_id in before:
        task_of(entered, task_id)  # refused here rather than by a worker
    return entered


def subject_of(config: Config, task_id: str) -> str:
    """What a task is about: of one's own its examples, so that a copy of a folder is no other task; else `subject`."""
    bare = split_variant(task_id)[1]
    if bare not in config.tasks.folders:
        return subject(task_id)
    task = task_of(config, bare)
    return fingerprint(
        *(sorted([e.text, e.label] for e in split) for split in (task.train, task.validation, task.test))
    )


def check_answers(config: Config, asked: Iterable[tuple[str, Sequence[BaseRecord]]]) -> None:
    """TaskError, before anything is trained, where a base cannot tell the labels of a task of one's own apart."""
    own = [(task_id, bases) for task_id, bases in asked if split_variant(task_id)[1] in config.tasks.folders]
    records = {base.fingerprint: base for _, bases in own for base in bases}
    tokenizers = {key: load_tokenizer(base) for key, base in records.items()}
    for task_id, bases in own:
        labels = task_of(config, task_id).labels
        for base in bases:
            try:
                modality_of(base.spec.kind).check_labels(tokenizers[base.fingerprint], labels)
            except TaskError as error:
                raise TaskError(f"task {task_id!r} on base {base.id!r}: {error}") from None


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


def _entered(store: StoreConfig, folders: dict[str, str], task_id: str) -> Task:
    if task_id not in folders:
        raise TaskError(
            f"unknown task {task_id!r}: the run has no such folder in its store (tasks.folders has "
            f"{', '.join(folders) or 'none'}); name folders in tasks.ids, further or unseen, and begin with enter_tasks"
        )
    return _stored(canonical_json(store), task_id, folders[task_id])


@lru_cache(maxsize=64)
def _stored(store: str, task_id: str, content: str) -> Task:
    return get_task(open_objects(StoreConfig.model_validate_json(store)), task_id, content)
