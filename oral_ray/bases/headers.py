"""Safetensors headers by range reads: names, shapes and places of all tensors of a checkpoint, no weights read.

Format: 8 bytes little-endian header length n, n bytes of JSON, then data; every tensor's `data_offsets` are relative
to the data. Everything is checked before it is believed: n is capped before anything is allocated, offsets must tile
the data exactly and agree with dtype and shape, the file must end where the last tensor does.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from oral_ray.errors import BaseModelError
from oral_ray.objects import ObjectInfo

MAX_HEADER_BYTES = 100_000_000
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # weights as they are; everything else needs scales, or is no weight
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Every dtype that the safetensors format has."""
_OTHER_FORMATS = {
    b"version ": "is a Git LFS pointer, not the file that it stands for; run git lfs pull",
    b"PK\x03\x04": "is a pickle or zip archive by another name; convert it with save_pretrained",
    b"GGUF": "is a GGUF file by another name; name it .gguf",
    b"<": "is a web page, not weights; download it again",
}


class Ranges(Protocol):
    """What reading a header needs."""

    @property
    def uri(self) -> str: ...

    def range(self, key: str, start: int, length: int) -> bytes: ...
    def num_bytes(self, key: str) -> int: ...


class Files(Ranges, Protocol):
    """What reading a checkpoint needs of a store; every `Objects` is one."""

    def get(self, key: str) -> bytes: ...
    def exists(self, key: str) -> bool: ...
    def list(self, prefix: str = "") -> Iterable[ObjectInfo]: ...


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: object key, dtype, shape, absolute byte range [start, end)."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(files: Ranges, key: str) -> dict[str, TensorEntry]:
    """All tensors of one .safetensors object; BaseModelError says what is wrong with it."""
    num_bytes = files.num_bytes(key)
    prefix = files.range(key, 0, 8)
    if len(prefix) < 8:
        raise BaseModelError(
            f"{files.uri}/{key}: there is no header in a file of {num_bytes} bytes; it was cut off, upload it again"
        )
    length = int.from_bytes(prefix, "little")
    for start, reason in _OTHER_FORMATS.items() if length > MAX_HEADER_BYTES else ():
        if prefix.startswith(start):
            raise BaseModelError(f"{files.uri}/{key} {reason}")
    if length < 2 or length > min(MAX_HEADER_BYTES, num_bytes - 8):
        raise BaseModelError(
            f"{files.uri}/{key}: header length {length} is not possible in a file of {num_bytes} bytes "
            f"(at most {MAX_HEADER_BYTES}); the file is truncated or no safetensors file, upload it again"
        )
    try:
        header: dict[str, Any] = json.loads(files.range(key, 8, length), object_pairs_hook=_no_name_twice)
        header.pop("__metadata__", None)
        entries = {name: _entry(key, name, item, 8 + length) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BaseModelError(f"{files.uri}/{key}: malformed safetensors header: {error}; upload it again") from None
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise BaseModelError(f"{files.uri}/{key}: tensors overlap or leave a gap at byte {end}; upload it again")
        end = entry.end
    if end != num_bytes:
        raise BaseModelError(
            f"{files.uri}/{key}: truncated or padded, {num_bytes} bytes where its header needs {end}; upload it again"
        )
    return entries


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice")
        found[name] = value
    return found


def _entry(key: str, name: str, item: dict[str, Any], data_start: int) -> TensorEntry:
    dtype, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
    if dtype not in DTYPE_BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {dtype!r}")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"tensor {name!r} has a negative or fractional size")
    num_bits = DTYPE_BITS[dtype] * math.prod(shape)
    if 8 * (end - start) != num_bits:
        raise ValueError(f"tensor {name!r} spans {end - start} bytes, its shape needs {-(-num_bits // 8)}")
    return TensorEntry(key, dtype, shape, data_start + start, data_start + end)
