"""The one place that turns a task id into a task: `wordnet/<name>`, `bigbench/<name>`, or the path of a task folder.

`shuffled/<task id>` is the control of any of them: the same training texts, their answers dealt out anew.
"""

from pathlib import Path

from oral_ray.errors import TaskError
from oral_ray.tasks import bigbench
from oral_ray.tasks.folder import load_task_folder
from oral_ray.tasks.task import Task, shuffled
from oral_ray.tasks.wordnet import TASKS, load_wordnet_task


def list_tasks() -> tuple[str, ...]:
    """The ids of the tasks that ship with oral_ray."""
    return tuple(f"wordnet/{name}" for name in TASKS)


def load_task(task_id: str) -> Task:
    """Load a task by id; TaskError lists what exists."""
    source, _, name = task_id.partition("/")
    if source == "wordnet" and name:
        return load_wordnet_task(name)
    if source == "shuffled" and name:
        return shuffled(load_task(name))
    if source == "bigbench" and name:
        return bigbench.load_bigbench_task(name)
    if (Path(task_id) / "task.toml").is_file():
        return load_task_folder(Path(task_id))
    raise TaskError(
        f"unknown task {task_id!r}; known: {', '.join(list_tasks())}, "
        f"bigbench/{{{','.join(bigbench.TASKS)}}}, or a folder with a task.toml"
    )
