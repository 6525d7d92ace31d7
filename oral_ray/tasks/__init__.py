"""Tasks: examples, labels, prompts and how an answer is scored. `load_task("wordnet/matter")` is the way in."""

from oral_ray.tasks.registry import list_tasks, load_task
from oral_ray.tasks.task import Example, Split, Task

__all__ = ["Example", "Split", "Task", "list_tasks", "load_task"]
