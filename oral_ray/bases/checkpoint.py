"""What of a checkpoint's folder counts: config.json, the weight files that transformers reads, what else changes answers.

A folder may hold much more: adapters, variants, pickles, code, a second copy of the weights. What transformers would
prefer or attach is refused by name, the rest is neither fingerprinted nor loaded. No torch, no weights.

    checkpoint = read_checkpoint(open_objects("/models/llama"))
    checkpoint.config["model_type"], checkpoint.tensors["lm_head.weight"].shape, checkpoint.files
"""

import fnmatch
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oral_ray.bases.contents import INDEX, SINGLE, why_no_checkpoint
from oral_ray.bases.headers import Files, TensorEntry, read_header
from oral_ray.errors import BaseModelError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "vocab-*", "*.model", "*.spm", "*.tiktoken")
BEHAVIOUR_FILES = (
    *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges*.txt", "*.codes",
    "*.jinja", "chat_template.json", "*processor_config.json",
)  # fmt: skip
"""Patterns of the files beside config.json and the weights that change what a model answers."""
MAX_CONFIG_MB, MAX_INDEX_MB = 5, 50
_UNFINISHED = ("*.incomplete", "*.part", "*.partial", "*.crdownload", "*.aria2", "*.download", "*.tmp")


@dataclass(frozen=True, slots=True)
class WeightNames:
    """What weight files are called: transformers' names start with `model`, those of diffusers otherwise."""

    single: str
    index: str
    shard: re.Pattern[str]

    @classmethod
    def of(cls, stem: str) -> "WeightNames":
        """The names that begin with a stem."""
        shard = re.compile(rf"{stem}-\d+(-of-\d+)?\.safetensors")
        return cls(f"{stem}.safetensors", f"{stem}.safetensors.index.json", shard)


OF_TRANSFORMERS = WeightNames.of("model")
OF_DIFFUSERS = WeightNames.of("diffusion_pytorch_model")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint under a prefix: its config, its tensors, and the names of all the files that count."""

    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    files: tuple[str, ...]


def read_checkpoint(files: Files, prefix: str = "") -> Checkpoint:
    """The checkpoint under a prefix (`""` or `some/folder/`).

    Raises BaseModelError where there is none, where it is damaged or incomplete, and where something lies in it that
    transformers would attach or prefer.
    """
    keys = [info.key.removeprefix(prefix) for info in files.list(prefix)]
    if reason := why_no_checkpoint(keys):
        raise BaseModelError(f"{_where(files, prefix)} {reason}")
    config = read_config(files, prefix)
    names = {key for key in keys if "/" not in key}
    if ADAPTER_CONFIG in names:
        raise BaseModelError(
            f"{_where(files, prefix)} holds an adapter ({ADAPTER_CONFIG}) beside the weights, which transformers would "
            "attach to them unasked; move the adapter out of the folder, or merge it"
        )
    tensors = _tensors(files, prefix, names, OF_TRANSFORMERS)
    keep = {CONFIG, *({INDEX} if SINGLE not in names else ()), *weight_files(tensors, prefix), *behaviour_files(names)}
    return Checkpoint(config, tensors, tuple(sorted(keep)))


def read_config(files: Files, prefix: str = "") -> dict[str, Any]:
    """config.json under a prefix, as transformers reads it."""
    key = f"{prefix}{CONFIG}"
    if not files.exists(key):
        raise BaseModelError(f"no base model at {files.uri}/{prefix}: config.json is missing; check the path")
    config = read_json(files, key, MAX_CONFIG_MB)
    model_type = config.get("model_type") or config.get("_class_name")  # diffusers names the class instead
    if not isinstance(model_type, str):
        raise BaseModelError(f"{files.uri}/{key} names no model_type; it is no transformers config.json")
    if config.get("transformers_weights") is not None:
        raise BaseModelError(
            f"{files.uri}/{key} sends transformers to another weight file (transformers_weights = "
            f"{config['transformers_weights']!r}); name that file {SINGLE} and remove the key"
        )
    if config.get("return_dict") is False:
        raise BaseModelError(
            f"{files.uri}/{key} says return_dict = false, with which a model's outputs have no names, and here they are "
            "read by name; remove the key"
        )
    return config | {"model_type": model_type}


def read_tensors(files: Files, prefix: str = "", called: WeightNames = OF_TRANSFORMERS) -> dict[str, TensorEntry]:
    """All tensors of the files that transformers (or diffusers) would load under a prefix; empty when there are none.

    Raises BaseModelError for a damaged file, a missing shard, and where it is not clear which files are meant.
    """
    return _tensors(files, prefix, _names(files, prefix), called)


def weight_files(tensors: Mapping[str, TensorEntry], prefix: str = "") -> list[str]:
    """The names of the files under the prefix in which tensors lie."""
    return sorted({entry.key.removeprefix(prefix) for entry in tensors.values()})


def behaviour_files(names: Collection[str]) -> list[str]:
    """Those of the names that change what a model answers, beside config.json and weights."""
    return sorted(name for name in names if _matches(name, BEHAVIOUR_FILES))


def check_tokenizer(names: Collection[str], where: str) -> None:
    """BaseModelError where there is no vocabulary among the names; transformers would make up a tokenizer."""
    if not any(_matches(name, TOKENIZER_FILES) for name in names):
        raise BaseModelError(f"base model at {where} has no tokenizer ({', '.join(TOKENIZER_FILES)}); add its files")


def _names(files: Files, prefix: str) -> set[str]:
    """The names directly under a prefix."""
    below = (info.key.removeprefix(prefix) for info in files.list(prefix))
    return {name for name in below if "/" not in name}


def _tensors(files: Files, prefix: str, names: Collection[str], called: WeightNames) -> dict[str, TensorEntry]:
    where = _where(files, prefix)
    if called.single in names:
        _check_alone(files, prefix, names, called)
        return read_header(files, prefix + called.single)
    if called.index not in names:
        return {}
    shards = _shards(files, prefix, called)
    lost = [shard for shard in shards if shard not in names]
    if lost:
        raise BaseModelError(
            f"shard {lost[0]!r} of {where} is missing{_unfinished(names)}; wait for it or upload it again"
        )
    stray = sorted(name for name in names if called.shard.fullmatch(name) and name not in shards)
    if stray:
        raise BaseModelError(
            f"{where} holds a shard that {called.index} does not name: {stray[0]!r}; upload the index that belongs to the "
            "shards, or remove those of another version"
        )
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        header = read_header(files, prefix + shard)
        twice = sorted(tensors.keys() & header.keys())
        if twice:
            raise BaseModelError(
                f"{where}: {twice[0]!r} is in two shards, {weight_files({'': tensors[twice[0]]}, prefix)[0]!r} and "
                f"{shard!r}; upload the shards of one version"
            )
        tensors |= header
    return tensors


def _shards(files: Files, prefix: str, called: WeightNames) -> list[str]:
    """The files that the index names. Which tensor it promises in which counts for nothing: all of each are loaded."""
    weight_map = read_json(files, prefix + called.index, MAX_INDEX_MB).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BaseModelError(f"{files.uri}/{prefix}{called.index} has no weight_map; upload it again")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise BaseModelError(
                f"{files.uri}/{prefix}{called.index} names {shard!r}, which is no safetensors file (pickle files are never "
                "read); save the model with save_pretrained"
            )
    return shards


def _check_alone(files: Files, prefix: str, names: Collection[str], called: WeightNames) -> None:
    """BaseModelError where shards lie beside a single file: transformers would prefer it, its owner may mean the other."""
    others = sorted(name for name in names if called.shard.fullmatch(name))
    if not others and called.index in names:
        others = [shard for shard in _shards(files, prefix, called) if shard != called.single]
    if others:
        raise BaseModelError(
            f"{_where(files, prefix)} holds weights twice, {called.single} and shards ({others[0]!r}); transformers would "
            f"load the single file only; remove whichever is not meant, with {called.index}"
        )


def _unfinished(names: Collection[str]) -> str:
    found = sorted(name for name in names if _matches(name, _UNFINISHED))
    return f" ({found[0]!r} is a download that has not ended)" if found else ""


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _where(files: Files, prefix: str) -> str:
    return f"{files.uri}/{prefix}".rstrip("/")


def read_json(files: Files, key: str, max_mb: int) -> dict[str, Any]:
    """A JSON object of at most `max_mb` megabytes; BaseModelError where it is none.

    Read as transformers does: UTF-8 without a mark, Infinity and NaN, the last of two equal keys.
    """
    num_bytes = files.num_bytes(key)
    if num_bytes > max_mb * 1_000_000:
        raise BaseModelError(
            f"{files.uri}/{key} has {num_bytes} bytes, at most {max_mb} MB are read; remove what is no setting of the model"
        )
    data = files.get(key)
    if data.startswith(b"version https://git-lfs"):
        raise BaseModelError(f"{files.uri}/{key} is a Git LFS pointer, not the file; run git lfs pull")
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BaseModelError(
            f"{files.uri}/{key} is no UTF-8 text (byte {error.start}), which transformers asks for; save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        if data.startswith(b"\xef\xbb\xbf"):
            raise BaseModelError(
                f"{files.uri}/{key} starts with a byte order mark, which transformers refuses; save it as UTF-8 without"
            ) from None
        too_deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if too_deep else str(error).partition("; use sys.")[0]
        raise BaseModelError(f"{files.uri}/{key} is not valid JSON: {reason}; correct it, or upload it again") from None
    if not isinstance(value, dict):
        raise BaseModelError(f"{files.uri}/{key} holds no JSON object; upload it again")
    return value
