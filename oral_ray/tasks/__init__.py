"""Tasks: examples, labels, prompts and how an answer is scored. `load_task("wordnet/matter")` is the way in."""

from oral_ray.tasks.registry import expand, list_tasks, load_task, subject
from oral_ray.tasks.task import Example, Split, Task

__all__ = ["Example", "Split", "Task", "expand", "list_tasks", "load_task", "subject"]
