"""A folder as an object store: the embedded default."""

import contextlib
import itertools
import os
import shutil
import stat
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
        if has_link and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise StoreError(
                f"object {key!r} of {self.uri} is a link that leaves the store, or lies behind one; replace the link by "
                "what it leads to (cp -rL copies that)"
            )
        return path

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return self.regular(key).read_bytes()

    def range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key), self.regular(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def num_bytes(self, key: str) -> int:
        with self._reading(key):
            path = self.path(key)
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def exists(self, key: str) -> bool:
        with self._reading(key):
            try:
                return stat.S_ISREG(self.path(key).stat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

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
            shutil.copyfile(self.regular(key), path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix.startswith("/") or ".." in prefix.split("/"):
            raise StoreError(f"prefix {prefix!r} leaves the store {self.uri}")
        keys = [
            Path(where, name).relative_to(self.root).as_posix()
            for where, folders, names in os.walk(self.root / prefix.rpartition("/")[0], onerror=self._not_listed)
            for name in (*names, *(n for n in folders if Path(where, n).is_symlink()))  # not followed, but not hidden
            if not name.startswith(TEMPORARY)
        ]
        for key in sorted(key for key in keys if key.startswith(prefix)):
            with contextlib.suppress(MissingObjectError), self._reading(key):
                yield self._info(key)

    def children(self, prefix: str) -> dict[str, bool]:
        """The names directly below a folder, empty ones too, and whether each is a folder; a link is none."""
        found: dict[str, bool] = {}
        try:
            with os.scandir(self.root / prefix) as entries:
                for entry in entries:
                    if not entry.name.startswith(TEMPORARY):
                        found[entry.name] = entry.is_dir(follow_symlinks=False)
        except OSError as error:
            self._not_listed(error)
        return found

    def delete(self, key: str) -> None:
        with self._reading(key):
            self.path(key).unlink(missing_ok=True)

    def link(self, key: str, valid_s: int) -> str | None:
        return None

    def leftovers(self) -> Iterator[ObjectInfo]:
        for path in sorted(self.root.rglob(f"{TEMPORARY}*")):
            with contextlib.suppress(FileNotFoundError):
                yield self._info(path.relative_to(self.root).as_posix())

    def discard(self, leftover: ObjectInfo) -> None:
        self.delete(leftover.key)

    def regular(self, key: str) -> Path:
        """The file of a key; StoreError for a pipe, a socket or a device, whose reader may wait for ever."""
        path = self.path(key)
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise StoreError(f"object {key!r} of {self.uri} is a pipe, a socket or a device, no file; remove it")
        return path

    def _info(self, key: str) -> ObjectInfo:
        path = self.root / key
        try:
            about = path.stat()
        except OSError:
            about = path.lstat()  # a link that leads nowhere, or in a circle, is there all the same
        return ObjectInfo(key, about.st_size, about.st_mtime, f"{about.st_ino}-{about.st_mtime_ns}")

    def _not_listed(self, error: OSError) -> None:
        """A folder that cannot be read is no empty one; one that is not there, or no more, is."""
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = error.strerror or str(error)
            raise StoreError(f"cannot list {error.filename!r} in {self.uri}: {reason}; make it readable") from None

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
