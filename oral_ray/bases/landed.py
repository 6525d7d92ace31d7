"""What lies directly below the prefix of the bases, before anything is read: names, links, files that still change.

for name, landed in list_landed(objects, "bases").items():
    landed.reason or unquiet(landed, f"bases/{name}/", 60.0)      # why it is not looked at; empty: it is
    check_files(objects, f"bases/{name}/", landed.infos)                # BaseModelError: a name, a link, a pointer
"""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from oral_ray.bases.contents import POINTER, why_no_checkpoint
from oral_ray.config import IDENTIFIER
from oral_ray.errors import BaseModelError, StoreError
from oral_ray.objects import FileObjects, ObjectInfo, Objects, check_key

READY = "READY"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
_POINTER_BYTES = range(100, 200)  # what git leaves is about 130 bytes long


@dataclass(frozen=True, slots=True)
class Landed:
    """The objects below a name, and why they are not looked at (empty: they are)."""

    infos: Sequence[ObjectInfo]
    reason: str = ""
    listed_s: float = field(default_factory=time.time, compare=False)
    """When they were listed, in seconds since 1970."""


def list_landed(
    objects: Objects, prefix: str, only: Collection[str] | None = None, known: Mapping[str, Landed] | None = None
) -> dict[str, Landed]:
    """What lies below a prefix, by the name directly below it; with `only`, below those of these that can be a key.

    A folder of `known` is not listed again. (In a bucket one listing has all names anyway.)
    """
    only = None if only is None else [name for name in only if _is_key(name)]  # an event may be made up
    in_folders = isinstance(objects, FileObjects)
    found = _folders(objects, prefix, only, known or {}) if in_folders else _listed(objects, prefix, only)
    wanted = "1 to 100 letters, digits, '.', '_' and '-', a letter or digit first"
    return {
        name: landed if re.fullmatch(IDENTIFIER, name) else Landed((), f"{name!r} is no valid id; rename it: {wanted}")
        for name, landed in found.items()
    }


def unquiet(landed: Landed, prefix: str, quiet_period_s: float) -> str:
    """Why to wait, empty when nothing had changed for the quiet period when it was listed; a READY as young as the youngest
    waives it."""
    infos = landed.infos
    newest = max(infos, key=lambda info: info.modified_s)
    is_ready = any(info.key == prefix + READY and info.modified_s >= newest.modified_s for info in infos)
    age_s = landed.listed_s - newest.modified_s
    if is_ready or quiet_period_s <= 0 or age_s >= quiet_period_s:
        return ""
    if -age_s > quiet_period_s:
        return (
            f"{newest.key.removeprefix(prefix)!r} was changed {-age_s:.0f} s in the future; set the clock right (here, or "
            f"where it was written) and touch the file, or put {READY} beside it"
        )
    return f"changed {max(0.0, age_s):.0f} s ago, quiet period is {quiet_period_s:.0f} s; wait"


def check_files(objects: Objects, prefix: str, infos: Iterable[ObjectInfo]) -> None:
    """BaseModelError for a file name that is no key, a link out of the checkpoint, and what git left for a tokenizer."""
    folder = FileObjects(objects.root / prefix) if isinstance(objects, FileObjects) else None
    for info in infos:
        name = info.key.removeprefix(prefix)
        try:
            check_key(info.key).encode()
        except (StoreError, UnicodeEncodeError):
            raise BaseModelError(
                f"the file name {name!r} can be no key of a store; rename or delete that file"
            ) from None
        if folder:
            _check_link(folder, name)
        if name in _TOKENIZERS and info.num_bytes in _POINTER_BYTES:
            check_pointer(name, objects.range(info.key, 0, len(POINTER)))


def check_pointer(name: str, head: bytes) -> None:
    """BaseModelError where a file begins like what git leaves in place of a large one."""
    if head.startswith(POINTER):
        raise BaseModelError(
            f"{name!r} is a Git LFS pointer, not the file itself; run git lfs pull where it was cloned, and copy it again"
        )


def _is_key(name: str) -> bool:
    try:
        check_key(name).encode()
    except (StoreError, UnicodeEncodeError):
        return False
    return True


def _check_link(folder: FileObjects, name: str) -> None:
    try:
        path = folder.path(name)
    except StoreError:
        raise BaseModelError(
            f"{name!r} is a link that leaves the store or the checkpoint's own folder; put there what it leads to: copy "
            "with cp -rL"
        ) from None
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BaseModelError(f"{name!r} is a pipe, a socket or a device, no file; remove it")
    if path.is_symlink() and not path.exists():
        raise BaseModelError(
            f"{name!r} is a link to {str(path.readlink())!r}, which is not there; copy with cp -rL from where it is"
        )


def _listed(objects: Objects, prefix: str, only: Collection[str] | None) -> dict[str, Landed]:
    listed: dict[str, list[ObjectInfo]] = {}
    for info in _infos(objects, prefix, only):
        listed.setdefault(info.key.removeprefix(f"{prefix}/").partition("/")[0], []).append(info)
    found: dict[str, Landed] = {}
    for name, infos in listed.items():
        below = [info for info in infos if info.key != f"{prefix}/{name}"]  # some tools leave an object for a folder
        found[name] = Landed(below, "" if below else _no_folder(name, prefix))
    return found


def _infos(objects: Objects, prefix: str, only: Collection[str] | None) -> Iterator[ObjectInfo]:
    if only is None:
        yield from objects.list(f"{prefix}/")
    for name in sorted(only or ()):
        yield from objects.list(f"{prefix}/{name}/")


def _folders(
    objects: FileObjects, prefix: str, only: Collection[str] | None, known: Mapping[str, Landed]
) -> dict[str, Landed]:
    """Each folder is listed by itself, so that one that cannot be read hides no other; an empty one is seen too."""
    children = objects.children(prefix)
    names = children if only is None else sorted(children.keys() & set(only))
    return {name: known.get(name) or _folder(objects, prefix, name, children[name]) for name in names}


def _folder(objects: FileObjects, prefix: str, name: str, is_folder: bool) -> Landed:
    path = objects.root / prefix / name
    if path.is_symlink():
        target = str(path.readlink())
        return Landed((), f"{name!r} is a link to {target!r}, and no link is followed here; copy it with cp -rL")
    if not is_folder:
        return Landed((), _no_folder(name, prefix))
    try:
        infos = [*objects.list(f"{prefix}/{name}/")]
    except StoreError as error:
        return Landed((), str(error))
    return Landed(infos, "" if infos else f"{objects.uri}/{prefix}/{name} {why_no_checkpoint(())}")


def _no_folder(name: str, prefix: str) -> str:
    return f"{name!r} is a file, no folder; put a checkpoint's files below {prefix}/ID/"
