"""The files of an adapter folder as they are found: its JSON, its tensors, and what a folder without them holds instead.

Nothing here knows a base or imports peft. Everything that cannot be read is an ArtifactError of one sentence, which says
what was found and what would help. Pickles are never loaded.

    config = parse_json(data, "adapter_config.json", "my-adapter")
    tensors = parse_tensors(data, "my-adapter")
"""

import codecs
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from oral_ray.errors import ArtifactError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DTYPES = frozenset({  # what torch reads of a safetensors file; an adapter is of floats, which the intake looks at
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL",
})  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_ENCODINGS = {
    codecs.BOM_UTF8: "UTF-8 with a byte order mark",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_PICKLE = (
    "a pickle, which can run code when it is read and is never loaded here; save its tensors with safetensors instead"
)


class _TwiceError(ValueError):
    """A key stands twice in a JSON object: readers differ in which one they take."""


def parse_json(data: bytes, file: str, name: str) -> dict[str, Any]:
    """The object in a JSON file of an adapter; ArtifactError for any other content, and for a key that stands twice."""
    where = f"adapter {name}: {file}"
    if not data.strip():
        raise ArtifactError(f"adapter {name} is damaged: {file} is empty; download it again")
    for mark, encoding in _ENCODINGS.items():
        if data.startswith(mark):
            raise ArtifactError(f"{where} is {encoding}, which peft does not read; save it as plain UTF-8")
    if data.startswith(b"version https://git-lfs"):
        raise ArtifactError(f"{where} is a Git LFS pointer, not the file itself; run git lfs pull")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{where} is not UTF-8 (byte {data[error.start]:#04x} at place {error.start}), which peft does not read; "
            "save it as UTF-8"
        ) from None
    except _TwiceError as error:
        raise ArtifactError(
            f"{where}: {error}, and readers differ in which they take; keep the one that is meant"
        ) from None
    except RecursionError:
        raise ArtifactError(f"{where} is nested too deeply to be a configuration; write it again") from None
    except ValueError as error:
        raise ArtifactError(
            f"adapter {name} is damaged: {file} is not valid JSON: {_short(error)}; correct it or download it again"
        ) from None
    if not isinstance(value, dict):
        raise ArtifactError(
            f"adapter {name} is damaged: {file} holds a {type(value).__name__}, no JSON object; write it again"
        )
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise ArtifactError(f"{where} holds {half!r}, half of a character; write that text again") from None
    return value


def parse_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the types they are stored in; ArtifactError for what is damaged."""
    if not data:
        raise ArtifactError(f"adapter {name} is damaged: {WEIGHTS} has no bytes; download it again")
    if data.startswith(b"version https://git-lfs"):
        raise ArtifactError(f"adapter {name}: {WEIGHTS} is a Git LFS pointer, not the weights; run git lfs pull")
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        raise ArtifactError(f"adapter {name}: {WEIGHTS} is in truth {_PICKLE}")
    _check_header(data, name)
    try:
        return load(data)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"adapter {name} is damaged: {WEIGHTS}: {_short(error)}; download it again") from None


def explain_no_config(folder: Path) -> str:
    """What lies where an adapter_config.json was expected, and what to do."""
    missing = f"no adapter at {folder}: {CONFIG} is missing"
    if folder.is_file():
        return _explain_file(folder)
    if not folder.is_dir():
        return f"{missing}, there is no such folder; check the path"
    names = sorted(path.name for path in folder.iterdir())
    if CONFIG in names:
        return f"no adapter at {folder}: {CONFIG} is {_oddity(folder / CONFIG)}; copy the file itself there"
    if other := _of_other_case(names, CONFIG):
        return f"{missing}, there is {other!r}; rename it"
    if inside := sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}")):
        where = ", ".join(str(folder / part) for part in inside[:3])
        return f"{missing}; there {'is one' if len(inside) == 1 else 'are some'} in {where}: name that folder"
    if foreign := _foreign_format(folder, names):
        return f"no adapter at {folder}: {foreign}"
    if "config.json" in names and WEIGHTS not in names:
        return f"no adapter at {folder}: it is a whole model (config.json); give it as --base, and the adapter's own folder"
    if WEIGHTS in names:
        return f"{missing} beside {WEIGHTS}; add the one that training wrote, without it r and lora_alpha are not known"
    return f"{missing}; check the path"


def explain_no_weights(folder: Path, config: dict[str, Any]) -> str:
    """What lies where adapter_model.safetensors was expected, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    if "fine_tune_type" in config:  # MLX writes a file of peft's name with other content
        return f"adapter {folder} is one of MLX; convert it to peft's format"
    if WEIGHTS in names:
        return f"adapter {folder}: {WEIGHTS} is {_oddity(folder / WEIGHTS)}; copy the file itself there"
    if other := _of_other_case(names, WEIGHTS):
        return f"adapter {folder} has no {WEIGHTS}, peft does not read {other!r}; rename it"
    if "adapter_model.bin" in names:
        return f"adapter {folder} has no {WEIGHTS}, its weights are adapter_model.bin, {_PICKLE}"
    if foreign := _foreign_format(folder, names):
        return f"adapter {folder} has no {WEIGHTS}: {foreign}"
    return f"adapter {folder} has no {WEIGHTS}; it is incomplete, download it again"


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(f"{key!r} stands there twice")
        found[key] = value
    return found


def _check_header(data: bytes, name: str) -> None:
    """What the library says in its own words only, or passes over: a name that stands twice, other types, a cut file."""
    damaged = f"adapter {name} is damaged: {WEIGHTS}"
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ArtifactError(f"{damaged} is cut off or no safetensors file ({len(data)} bytes); download it again")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_no_key_twice)
        entries = {key: item for key, item in header.items() if key != "__metadata__"}
        sizes = {
            key: (str(item["dtype"]), math.prod(item["shape"]), int(item["data_offsets"][1]))
            for key, item in entries.items()
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{damaged} has a garbled header: {_short(error)}; download it again") from None
    for key, (dtype, _, _) in sizes.items():
        if dtype not in _DTYPES:
            raise ArtifactError(
                f"adapter {name}: {key} is stored as {dtype[:20]}, no type of a LoRA's tensors; convert it to float32"
            )
    end = 8 + length + max((end for _, _, end in sizes.values()), default=0)
    if end > len(data):
        raise ArtifactError(f"{damaged} is cut off: {len(data)} bytes where its header needs {end}; download it again")


def _oddity(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {str(path.readlink())!r}, which is not there"
    return "a folder" if path.is_dir() else "no regular file"


def _of_other_case(names: Collection[str], wanted: str) -> str:
    return next((name for name in names if name.lower() == wanted and name != wanted), "")


def _explain_file(path: Path) -> str:
    if path.name in (WEIGHTS, CONFIG):
        return f"no adapter at {path}: it is a file of one; name its folder {path.parent}"
    foreign = _foreign_format(path.parent, [path.name])
    return f"no adapter at {path}: {foreign or 'it is a file, an adapter is a folder; check the path'}"


def _foreign_format(folder: Path, names: Collection[str]) -> str:
    """What the files are where they are an adapter in another library's format; empty for none that is known."""
    if gguf := next((name for name in names if name.lower().endswith(".gguf")), ""):
        return f"{gguf} is a GGUF file of llama.cpp; take the peft adapter that it was converted from"
    if mlx := next((name for name in names if name in ("adapters.safetensors", "adapters.npz")), ""):
        return f"{mlx} is an adapter of MLX; convert it to peft's format"
    if "pytorch_lora_weights.safetensors" in names:
        return (
            "pytorch_lora_weights.safetensors is a LoRA file of diffusers, with no configuration; load it in diffusers and "
            "save it with peft's save_pretrained"
        )
    for name in names:
        if name.lower().endswith(".safetensors") and _is_kohya(folder / name):
            return f"{name} is a LoRA file of kohya's scripts (lora_down, lora_up); convert it to peft's format"
    return ""


def _is_kohya(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return b".lora_down." in file.read(min(length, _MAX_HEADER_BYTES))
    except OSError:
        return False


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
