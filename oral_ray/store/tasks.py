"""Tasks of one's own in the store, `tasks/<name>/<fingerprint>.json`: what a worker reads, wherever it runs.

Content is named by its fingerprint and never changed: another text in the folder is another object beside the first.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from oral_ray.config import canonical_json
from oral_ray.errors import MissingObjectError, OralError, StoreError
from oral_ray.objects import Objects
from oral_ray.tasks import Task
from oral_ray.tasks.folder import SOURCE


def put_task(objects: Objects, task: Task) -> None:
    """Keep a task; one that is there is left, unless it is damaged."""
    key, data = _key(task.id, task.fingerprint), canonical_json(task).encode()
    if not objects.put_if_absent(key, data) and objects.get(key) != data:
        objects.put(key, data)


def get_task(objects: Objects, task_id: str, fingerprint: str) -> Task:
    """The task `folder/<name>` of a fingerprint; StoreError where it is not there or damaged."""
    key = _key(task_id, fingerprint)
    try:
        task = Task.model_validate_json(objects.get(key))
    except MissingObjectError:
        raise StoreError(
            f"task {task_id!r} of fingerprint {fingerprint} is not in {objects.uri}; name its folder in the configuration"
        ) from None
    except ValidationError:
        task = None
    if task is None or (task.id, task.fingerprint) != (task_id, fingerprint):
        raise StoreError(f"{key} in {objects.uri} is damaged; name the task's folder again, or delete the object")
    return task


def damaged_tasks(objects: Objects) -> Iterator[str]:
    """One sentence for each task that is not what its name says."""
    for info in objects.list("tasks/"):
        name, _, file = info.key.removeprefix("tasks/").partition("/")
        try:
            get_task(objects, f"{SOURCE}/{name}", file.removesuffix(".json"))
        except OralError as error:
            yield str(error)


def _key(task_id: str, fingerprint: str) -> str:
    return f"tasks/{task_id.partition('/')[2]}/{fingerprint}.json"
