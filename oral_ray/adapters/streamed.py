"""Adapter folders of any size: digests read in parts, and folders that appear whole or not at all.

digest = folder_digest(folder)           # what AdapterArtifact.digest is of the same adapter in memory
with arriving(folder, digest) as temporary: ...  # write files into `temporary`; afterwards they are in `folder`
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from oral_ray.adapters.artifact import CONFIG, WEIGHTS
from oral_ray.bases.headers import read_header
from oral_ray.bases.sources import SourceFolder
from oral_ray.config import canonical_json
from oral_ray.errors import ArtifactError, BaseModelError, StoreError

PART_BYTES = 1 << 20
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class TensorPlace(NamedTuple):
    """One tensor of a file: torch's name of its dtype, its shape, where its bytes start and how many they are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class _Opened(NamedTuple):
    """An open file as `read_header` reads it: it is opened, and its path resolved, once instead of three times."""

    uri: str
    file: int

    def num_bytes(self, key: str) -> int:
        return os.fstat(self.file).st_size

    def range(self, key: str, start: int, length: int) -> bytes:
        return os.pread(self.file, length, start)


def stream_digest(config: str, places: Iterable[TensorPlace], file: BinaryIO) -> str:
    """The digest of an adapter from its canonical configuration and the tensors in an open file, in parts of 1 MiB."""
    digest, part = hashlib.sha256(config.encode()), memoryview(bytearray(PART_BYTES))
    for place in sorted(places):
        digest.update(f"\n{place.name} torch.{place.dtype} {place.shape}\n".encode())
        file.seek(place.start)
        left = place.num_bytes
        while left:
            count = file.readinto(part[: min(left, PART_BYTES)])  # type: ignore[attr-defined]
            if not count:
                raise ArtifactError(f"the file of {place.name} ends {left} bytes too early; write it again")
            digest.update(part[:count])
            left -= count
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """The digest of a PEFT folder; ArtifactError where it is damaged or no adapter. Values are not looked at."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise ValueError("adapter_config.json holds no object")
        with SourceFolder(folder).path(WEIGHTS).open("rb", buffering=0) as file:
            entries = read_header(_Opened(str(folder), file.fileno()), WEIGHTS)
            places = [
                TensorPlace(name, _TORCH_NAMES[entry.dtype], entry.shape, entry.start, entry.end - entry.start)
                for name, entry in entries.items()
            ]
            return stream_digest(canonical_json(config), places, file)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise ArtifactError(f"no adapter at {folder}: {Path(error.filename).name} is missing; check the path") from None
    except (OSError, ValueError, RecursionError, BaseModelError, StoreError) as error:
        raise ArtifactError(f"adapter {folder} is damaged: {' '.join(str(error).split())[:300]}") from None


def check_free(folder: Path, digest: str) -> None:
    """ArtifactError where a folder holds anything but the adapter of a digest, which may be written there again."""
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() or folder.is_symlink() else []
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None
    if not names:
        return
    remedy = "nothing was written; choose another folder, or remove this one"
    try:
        found = folder_digest(folder)
    except ArtifactError:
        raise ArtifactError(
            f"{folder} holds {len(names)} files that are no whole adapter, first {names[0]!r}; {remedy}"
        ) from None
    if found != digest:
        raise ArtifactError(f"{folder} holds adapter {found[:16]}, not {digest[:16]}; {remedy}")


@contextlib.contextmanager
def arriving(folder: Path, digest: str) -> Iterator[Path]:
    """A temporary folder beside `folder` whose files are moved there in the end, or deleted after an error.

    A folder that is not there, or is empty, appears by one rename; in one that has this very adapter the files are
    replaced one by one, its adapter_config.json deleted first and moved last. ArtifactError, and nothing is written, where
    something else lies there. StoreError where the disk refuses.
    """
    check_free(folder, digest)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.oral-tmp-", dir=folder.parent))
        temporary.chmod(0o755)
        try:
            yield temporary
            check_free(folder, digest)  # another one may have come meanwhile
            if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                temporary.rename(folder)
                return
            (folder / CONFIG).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None
