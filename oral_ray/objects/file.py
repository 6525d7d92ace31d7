"""A folder as an object store: the embedded default."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects.cache import ReadCache
from oral_ray.objects.protocol import ObjectInfo, check_key
from oral_ray.objects.unfinished import TEMPORARY, unfinished


class FileObjects:
    """A folder as an object store. Writes are atomic (temporary file, then rename or hard link).

    The folder is made once, where it is missing. One that goes away later is not made again: what was written there would
    be lost when it comes back.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self._is_made = self.root.is_dir()
        self.uri = f"file://{self.root}"
        self.concurrency = 4
        self.cache: ReadCache | None = None  # it is local already

    def path(self, key: str) -> Path:
        """The file of a key; StoreError where a symbolic link leads out of the store."""
        path = self.root / check_key(key)
        steps = itertools.accumulate(key.split("/"), os.path.join, initial=str(self.root))
        has_link = any(map(os.path.islink, itertools.islice(steps, 1, None)))  # to resolve every path takes far longer
        if has_link and not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"object {key!r} of {self.uri} is a link that leaves the store; replace it by a file")
        return path

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return self.path(key).read_bytes()

    def range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key), self.path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def num_bytes(self, key: str) -> int:
        with self._reading(key):
            path = self.path(key)
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def put(self, key: str, data: bytes) -> None:
        with self._writing(key) as (temporary, target):
            temporary.write_bytes(data)
            temporary.replace(target)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._writing(key) as (temporary, target):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            return True

    def upload(self, path: Path, key: str) -> None:
        with self._writing(key) as (temporary, target):
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)

    def download(self, key: str, path: Path) -> None:
        with self._reading(key):
            shutil.copyfile(self.path(key), path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix.startswith("/") or ".." in prefix.split("/"):
            raise StoreError(f"prefix {prefix!r} leaves the store {self.uri}")
        keys = [
            Path(where, name).relative_to(self.root).as_posix()
            for where, folders, names in os.walk(self.root / prefix.rpartition("/")[0])
            for name in (*names, *(n for n in folders if Path(where, n).is_symlink()))  # not followed, but not hidden
            if not name.startswith(TEMPORARY)
        ]
        for key in sorted(key for key in keys if key.startswith(prefix)):
            with contextlib.suppress(FileNotFoundError):
                stat = (self.root / key).stat()
                yield ObjectInfo(key, stat.st_size, stat.st_mtime, f"{stat.st_ino}-{stat.st_mtime_ns}")

    def delete(self, key: str) -> None:
        with self._reading(key):
            self.path(key).unlink(missing_ok=True)

    def link(self, key: str, valid_s: int) -> str | None:
        return None

    def leftovers(self) -> Iterator[ObjectInfo]:
        for path in sorted(self.root.rglob(f"{TEMPORARY}*")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                key = path.relative_to(self.root).as_posix()
                yield ObjectInfo(key, stat.st_size, stat.st_mtime, f"{stat.st_ino}-{stat.st_mtime_ns}")

    def discard(self, leftover: ObjectInfo) -> None:
        self.delete(leftover.key)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingObjectError(f"no object {key!r} in {self.uri}") from None
        except OSError as error:
            raise StoreError(f"cannot read {key!r} in {self.uri}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[tuple[Path, Path]]:
        """A temporary file beside that of the key, and that of the key."""
        target = self.path(key)
        try:
            self._make(target.parent)
            with unfinished(target) as temporary:
                yield temporary, target
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(f"cannot write {key!r} in {self.uri}: {reason}; check space and permissions") from None

    def _make(self, folder: Path) -> None:
        if not self._is_made:
            self.root.mkdir(parents=True, exist_ok=True)
            self._is_made = True
        if not folder.is_dir():
            steps = itertools.accumulate(folder.relative_to(self.root).parts, Path.joinpath, initial=self.root)
            for step in itertools.islice(steps, 1, None):
                step.mkdir(exist_ok=True)
