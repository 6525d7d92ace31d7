"""What an object store must offer, and which keys are names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from oral_ray.errors import StoreError

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
    that gives the object to whoever has it, None where the store has no such thing.

    A missing key raises MissingObjectError, any other failure StoreError.
    """

    uri: str

    def get(self, key: str) -> bytes: ...
    def range(self, key: str, start: int, length: int) -> bytes: ...
    def num_bytes(self, key: str) -> int: ...
    def exists(self, key: str) -> bool: ...
    def put(self, key: str, data: bytes) -> None: ...
    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def upload(self, path: Path, key: str) -> None: ...
    def download(self, key: str, path: Path) -> None: ...
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...
    def delete(self, key: str) -> None: ...
    def link(self, key: str, valid_s: int) -> str | None: ...


def check_key(key: str) -> str:
    """Return the key if it is a plain relative name, else raise StoreError (no `..`, no control characters)."""
    if not key or len(key) > 1024 or any(p in ("", ".", "..") or not _PART.fullmatch(p) for p in key.split("/")):
        raise StoreError(f"object key {key[:200]!r} is not a plain relative name like 'adapters/abc/file.json'")
    return key
