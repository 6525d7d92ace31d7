"""What was read from a store across a network, kept in a local folder: bounded in bytes, least recently used goes first.

An entry is a flat folder of files whose content has a digest, which is compared whenever the entry is used. Every failure
of the cache's own (a full disk, another process that was faster) is only a reason to read the store.

    if not cache.copy(name, folder, is_whole):           # is_whole(folder) compares a digest
        ...                                              # read the store into `folder`
        cache.keep(name, folder)
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from oral_ray.objects.unfinished import TEMPORARY

logger = logging.getLogger(__name__)
_DEAD_S = 3600.0  # what a process wrote so long ago and never finished, it never will


class ReadCache:
    """Entries by name in a folder that several processes may share."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder.expanduser(), max_bytes

    def copy(self, name: str, folder: Path, is_whole: Callable[[Path], bool]) -> bool:
        """Copy the files of an entry, which counts as used now, into a folder; whether there was one, and it was whole.

        `is_whole` compares digests in the folder; an entry that is not is forgotten and leaves no file there.
        """
        entry = self.folder / name
        try:
            os.utime(entry)
        except OSError:
            return False
        with contextlib.suppress(OSError):  # another process may be making room
            _copy(entry, folder)
            if is_whole(folder):
                return True
        logger.warning("%s in the read cache %s is damaged or gone; it is read from the store", name, self.folder)
        _delete(entry)
        for path in folder.iterdir():
            path.unlink()
        return False

    def keep(self, name: str, source: Path) -> None:
        """Add the files of a folder as an entry, for which the least recently used ones make room."""
        try:
            num_bytes = _num_bytes(source)
            if num_bytes > self.max_bytes:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(num_bytes)
            temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.folder))
            try:
                _copy(source, temporary)
                if not (self.folder / name).exists():
                    temporary.rename(self.folder / name)
            finally:
                _delete(temporary)
        except OSError as error:
            logger.warning("%s cannot be kept in the read cache %s: %s", name, self.folder, error.strerror or error)

    def _make_room(self, num_bytes: int) -> None:
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process has just deleted it
                entries.append((path.stat().st_mtime, _num_bytes(path), path))
        total = sum(size for _, size, _ in entries)
        for used_s, size, path in sorted(entries):
            is_under_way = path.name.startswith(TEMPORARY)
            is_dead = is_under_way and used_s < time.time() - _DEAD_S
            if is_dead or (total + num_bytes > self.max_bytes and not is_under_way):
                _delete(path)
                total -= size


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _delete(path: Path) -> None:
    """Delete a folder; nobody finds it half-deleted."""
    doomed = path.with_name(f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns()}")
    with contextlib.suppress(OSError):
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
