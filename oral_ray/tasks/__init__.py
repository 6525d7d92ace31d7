"""Tasks: examples, labels, prompts and how an answer is scored. `load_task("wordnet/matter")` is the way in."""

from oral_ray.tasks.registry import (
    expand,
    folder_of,
    is_shipped,
    list_tasks,
    load_task,
    read_folder,
    split_variant,
    subject,
)
from oral_ray.tasks.task import Example, Split, Task

__all__ = [
    "Example", "Split", "Task", "expand", "folder_of", "is_shipped", "list_tasks", "load_task", "read_folder",
    "split_variant", "subject",
]  # fmt: skip
