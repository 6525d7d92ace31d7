"""What an object store must offer, which keys are names, and how several objects are moved at once."""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from oral_ray.errors import StoreError
from oral_ray.objects.cache import ReadCache

_T = TypeVar("_T")
_R = TypeVar("_R")
_PART = re.compile(r"[^\x00-\x1f\\/]+")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object: key, size in bytes, time of last change in seconds since 1970.

    `tag` is another one whenever the object was replaced: S3's ETag; inode and time of change in ns of a file.
    """

    key: str
    num_bytes: int
    modified_s: float
    tag: str


class Objects(Protocol):
    """What a store must offer: `list` is sorted by key, a range is cut at the object's end, `link` is a url
    that gives the object to whoever has it, None where the store has no such thing. `cache` is for who reads what has
    a digest.

    A missing key raises MissingObjectError, any other failure StoreError. `leftovers` are the traces of writes that never
    ended (or have not yet): temporary files, unfinished multipart uploads; no listing shows them, `discard` removes one.
    """

    uri: str
    concurrency: int
    cache: ReadCache | None

    def get(self, key: str) -> bytes:
        """The content of an object."""
        ...

    def range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the object's end."""
        ...

    def num_bytes(self, key: str) -> int:
        """The size of an object."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object, over the one that is there; readers see the old content or the new one, whole."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object that is not there; of all writers of a key exactly one is told True."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Write an object from a file."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Write an object into a file."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key begins with a prefix, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...

    def link(self, key: str, valid_s: int) -> str | None:
        """A url that gives the object to whoever has it, for so many seconds; None where the store has no such thing."""
        ...

    def leftovers(self) -> Iterator[ObjectInfo]:
        """The traces of writes that never ended, or have not yet."""
        ...

    def discard(self, leftover: ObjectInfo) -> None:
        """Remove one of the leftovers."""
        ...


def in_parallel(objects: Objects, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`function` of every item, in order, at most `objects.concurrency` of them at once and as many results waiting.

    The first failure is raised where its result would come, and nothing further is started.
    """
    items, waiting = iter(items), deque[Future[_R]]()
    with ThreadPoolExecutor(objects.concurrency, thread_name_prefix="objects") as pool:
        try:
            for item in itertools.islice(items, objects.concurrency):
                waiting.append(pool.submit(function, item))
            while waiting:
                result = waiting.popleft().result()
                for item in itertools.islice(items, 1):
                    waiting.append(pool.submit(function, item))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def check_key(key: str) -> str:
    """Return the key if it is a plain relative name, else raise StoreError (no `..`, no control characters)."""
    if not key or len(key) > 1024 or any(p in ("", ".", "..") or not _PART.fullmatch(p) for p in key.split("/")):
        raise StoreError(f"object key {key[:200]!r} is not a plain relative name like 'adapters/abc/file.json'")
    return key
