"""Tasks of one's own in the store, `tasks/<name>/<fingerprint>.json`: what a worker reads, wherever it runs.

Content is named by its fingerprint and never changed: another text in the folder is another object beside the first. The
images of a task lie in one archive beside it, `<fingerprint>.zip`, each under its digest, and are unpacked into this
machine's cache when the task is read.
"""

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from oral_ray.config import canonical_json
from oral_ray.errors import MissingObjectError, OralError, StoreError
from oral_ray.local.packages import cache_folder
from oral_ray.objects import Objects
from oral_ray.tasks import Example, Task
from oral_ray.tasks.folder import SOURCE
from oral_ray.tasks.images import MAX_BYTES
from oral_ray.tasks.task import ImageRef

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same images make the same archive


def put_task(objects: Objects, task: Task) -> None:
    """Keep a task; one that is there is left, unless it is damaged. Its images are there before it is."""
    key, data = _key(task.id, task.fingerprint), canonical_json(task).encode()
    if task.images:
        _put(objects, _images_key(key), _archive(task.images))
    _put(objects, key, data)


def get_task(objects: Objects, task_id: str, fingerprint: str) -> Task:
    """The task `folder/<name>` of a fingerprint, its images on this machine; StoreError where it is lost or damaged."""
    key = _key(task_id, fingerprint)
    task = _task(objects, task_id, fingerprint, key)
    if not task.images:
        return task
    folder = cache_folder() / "images"
    if lost := {digest for digest in task.images if not (folder / digest).is_file()}:
        for digest, data in _unpacked(objects, _images_key(key)):
            if digest in lost:
                _keep(folder / digest, data)
                lost.remove(digest)
        if lost:
            raise StoreError(f"{_images_key(key)} in {objects.uri} lacks images; name the task's folder again")
    return _placed(task, folder)


def damaged_tasks(objects: Objects) -> Iterator[str]:
    """One sentence for each task, and each archive of images, that is not what its name says."""
    for info in objects.list("tasks/"):
        name, _, file = info.key.removeprefix("tasks/").partition("/")
        try:
            if file.endswith(".zip"):
                for _ in _unpacked(objects, info.key):
                    pass
                continue
            task_id, fingerprint = f"{SOURCE}/{name}", file.removesuffix(".json")
            task = _task(objects, task_id, fingerprint, info.key)
            if task.images and not objects.exists(_images_key(info.key)):
                yield f"{info.key} in {objects.uri} has lost its images; name the task's folder again"
        except OralError as error:
            yield str(error)


def _task(objects: Objects, task_id: str, fingerprint: str, key: str) -> Task:
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


def _put(objects: Objects, key: str, data: bytes) -> None:
    if not objects.put_if_absent(key, data) and objects.get(key) != data:
        objects.put(key, data)


def _archive(images: Mapping[str, ImageRef]) -> bytes:
    """Every image under its digest, in one order; StoreError where one is not what it was when the task was read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for digest, image in sorted(images.items()):
            try:
                data = Path(image.path).read_bytes()
            except OSError as error:
                raise StoreError(f"image {image.path!r} cannot be read: {error.strerror}; start again") from None
            if hashlib.sha256(data).hexdigest() != digest:
                raise StoreError(f"image {image.path!r} was changed while the task was read; start again")
            archive.writestr(zipfile.ZipInfo(digest, _EPOCH), data)
    return buffer.getvalue()


def _unpacked(objects: Objects, key: str) -> Iterator[tuple[str, bytes]]:
    """Digest and bytes of each image of an archive; StoreError for one that is damaged, or is no image's."""
    damaged = StoreError(f"{key} in {objects.uri} is damaged; name the task's folder again, or delete the object")
    try:
        with zipfile.ZipFile(io.BytesIO(objects.get(key))) as archive:
            for info in archive.infolist():
                if info.file_size > MAX_BYTES:
                    raise damaged
                data = archive.read(info)
                if hashlib.sha256(data).hexdigest() != info.filename:
                    raise damaged
                yield info.filename, data
    except MissingObjectError:
        raise StoreError(f"{key} is not in {objects.uri}; name the task's folder again") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        raise damaged from None


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".image-", delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def _placed(task: Task, folder: Path) -> Task:
    """The task with the place of every image on this machine."""

    def placed(example: Example) -> Example:
        image = example.image
        where = image and image.model_copy(update={"path": str(folder / image.digest)})
        return example.model_copy(update={"image": where})

    splits = {split: tuple(map(placed, getattr(task, split))) for split in ("train", "validation", "test")}
    return task.model_copy(update=splits)


def _key(task_id: str, fingerprint: str) -> str:
    return f"tasks/{task_id.partition('/')[2]}/{fingerprint}.json"


def _images_key(key: str) -> str:
    return f"{key.removesuffix('.json')}.zip"
