"""Bring a base model into memory, or into the store. Pickle weights and remote code are never loaded."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oral_ray.bases.catalog import BaseRecord, describe_base
from oral_ray.bases.sources import SourceFolder, local_path, put_folder
from oral_ray.config import Dtype
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects, Objects
from oral_ray.packages import cache_folder

_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model")


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory, in evaluation mode, on the CPU and in float32 unless asked for otherwise."""

    record: BaseRecord
    model: nn.Module
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device


def open_base(source: str, dtype: Dtype = "float32") -> LoadedBase:
    """Load a base model from any source; its id is the source."""
    with model_folder(source) as folder:
        record = describe_base(SourceFolder(folder), "", source)
        model, tokenizer = load_folder(folder, record.spec.kind)
    return LoadedBase(record, model.to(getattr(torch, dtype)), tokenizer)


def load_base(record: BaseRecord, dtype: Dtype = "float32", device: str = "cpu") -> LoadedBase:
    """Load the checkpoint of a record; BaseModelError when its content is not what the record says."""
    with model_folder(record.uri) as folder:
        found = describe_base(FileObjects(folder), "", record.id)
        if found.fingerprint != record.fingerprint:
            raise BaseModelError(
                f"base {record.id!r} at {record.uri} has fingerprint {found.fingerprint}, expected "
                f"{record.fingerprint}; it was replaced, run the catalog again"
            )
        model, tokenizer = load_folder(folder, record.spec.kind)
    for name, parameter in model.named_parameters():  # the catalog reads samples of the weights only
        if not torch.isfinite(parameter).all():
            raise BaseModelError(f"base {record.id!r}: {name} holds values that are not finite; do not use this base")
    return LoadedBase(record, model.to(device, getattr(torch, dtype)), tokenizer)


def load_folder(folder: Path, kind: str) -> tuple[nn.Module, Any]:
    """Model and tokenizer of a transformers folder with safetensors weights, float32, evaluation mode.

    Raises BaseModelError where there is no tokenizer (transformers would make one up) or transformers refuses the files.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise BaseModelError(f"base model at {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}); add its files")
    if kind not in ("encoder", "causal"):
        raise BaseModelError(f"{folder} is of kind {kind!r}; it has layouts, but nothing here trains or scores on it")
    auto = AutoModelForCausalLM if kind == "causal" else AutoModel
    try:
        with _quiet_transformers():
            model = auto.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"transformers cannot load the base model at {folder}: {reason}; check its files"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().requires_grad_(False), tokenizer


@contextlib.contextmanager
def model_folder(source: str) -> Iterator[Path]:
    """A local folder that `load_folder` reads, from any source; GGUF files are converted once and cached."""
    with local_path(source) as path:
        folder = _converted_gguf(path) if path.suffix == ".gguf" else path
        if not folder.is_dir():
            raise BaseModelError(f"base model {source!r} is neither a folder nor a .gguf file")
        yield folder


def import_base(source: str, objects: Objects, prefix: str) -> None:
    """Copy the files of a source under a prefix of the store, config.json last; BaseModelError if it is not complete."""
    with model_folder(source) as folder:
        describe_base(SourceFolder(folder), "", source)
        put_folder(folder, objects, prefix)


def _converted_gguf(path: Path) -> Path:
    """A safetensors folder made once from a GGUF file (dequantised to float32), kept in the user's cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    size = path.stat().st_size
    with path.open("rb") as file:
        key = hashlib.sha256(f"{path.name} {size}".encode() + file.read(1 << 20)).hexdigest()[:16]
    cache = cache_folder() / "gguf" / key
    if (cache / "config.json").exists():
        return cache
    try:
        with _quiet_transformers():
            loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except ImportError:
        raise BaseModelError(f"reading {path.name} needs the package gguf; run pip install gguf") from None
    # save_pretrained refuses a model with a quantization_config, though its weights are plain float32 by now.
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as name:
        plain.save_pretrained(name)
        tokenizer.save_pretrained(name)
        note = {"source": path.name, "note": "dequantised from GGUF, float32"}
        (Path(name) / "oral_source.json").write_text(json.dumps(note))
        with contextlib.suppress(OSError):  # another process was faster
            Path(name).rename(cache)
            Path(name).mkdir()
    return cache


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
