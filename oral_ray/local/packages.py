"""Data files out of packages of the package index: fetched once at run time with pip, never installed, never committed.

folder = unpacked("bigbench==1.0.0", r".*/benchmark_tasks/(color/rgb/task\\.json)")
folder / "color/rgb/task.json"
"""

import hashlib
import logging
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from oral_ray.errors import OralError

logger = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_. -]+(/[A-Za-z0-9_. -]+)*")


def cache_folder() -> Path:
    """Where files that can be made again are kept: `$XDG_CACHE_HOME/oral-ray`, by default below the home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "oral-ray"


def unpacked(requirement: str, pattern: str) -> Path:
    """A folder with the files of a package whose path matches wholly, named by the pattern's first group.

    Raises OralError when the package cannot be fetched or holds no such file.
    """
    key = hashlib.sha256(pattern.encode()).hexdigest()[:12]
    folder = cache_folder() / "packages" / f"{requirement.replace('==', '-')}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        logger.info("fetching %s from the package index", requirement)
        archive = _fetched(requirement, Path(name))
        files = Path(name) / "files"
        try:
            for path, data in _members(archive, re.compile(pattern)):
                (files / path).parent.mkdir(parents=True, exist_ok=True)
                (files / path).write_bytes(data)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
            raise OralError(f"{archive.name} cannot be unpacked: {error}; fetch it again") from None
        if not files.is_dir():
            raise OralError(f"{archive.name} has no file like {pattern!r}; it may be of another version")
        try:
            files.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def _fetched(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-d", str(folder / "archive"), requirement], capture_output=True, text=True)
    found = [*(folder / "archive").glob("*")] if done.returncode == 0 else []
    if len(found) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise OralError(f"package {requirement} could not be fetched: {reason}; check the connection to the index")
    return found[0]


def _members(archive: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if found := pattern.fullmatch(name):
                    yield _checked(found[1]), file.read(name)
        return
    with tarfile.open(archive) as file:
        for member in file:
            if member.isfile() and (found := pattern.fullmatch(member.name)) and (data := file.extractfile(member)):
                yield _checked(found[1]), data.read()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise OralError(f"file name {name!r} in a package would leave its folder; do not use this package")
    return name
