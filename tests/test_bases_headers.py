"""A damaged, cut or hostile safetensors file is named in one BaseModelError, before anything large is allocated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from oral_ray.bases.headers import MAX_HEADER_BYTES, TensorEntry, read_header
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects, Objects

KEY = "base/model.safetensors"


def tensor(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def file_of(header: Any, num_data_bytes: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_data_bytes)


def refusal(objects: Objects, data: bytes) -> str:
    objects.put(KEY, data)
    with pytest.raises(BaseModelError) as caught:
        read_header(objects, KEY)
    message = str(caught.value)
    assert f"{objects.uri}/{KEY}" in message
    assert "upload it again" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("store", ["objects", "s3_objects"])
def test_a_header_says_where_every_tensor_lies(store: str, request: pytest.FixtureRequest):
    objects: Objects = request.getfixturevalue(store)
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 2)}
    data = save(weights, metadata={"format": "pt"})
    objects.put(KEY, data)
    entries = read_header(objects, KEY)
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "a": ("BF16", (4,)), "b": ("F32", (2, 3)), "c": ("F32", (0, 2)),
    }  # fmt: skip
    found = torch.frombuffer(bytearray(objects.range(KEY, entries["b"].start, 24)), dtype=torch.float32)
    assert torch.equal(found.reshape(2, 3), weights["b"])
    assert max(entry.end for entry in entries.values()) == len(data)
    assert all(entry.key == KEY for entry in entries.values())


@pytest.mark.parametrize("store", ["objects", "s3_objects"])
@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 9])
def test_a_file_too_short_for_a_header_is_refused(store: str, num_bytes: int, request: pytest.FixtureRequest):
    message = refusal(request.getfixturevalue(store), file_of({"a": tensor(0, 4, [1])}, 4)[:num_bytes])
    assert f"in a file of {num_bytes} bytes" in message


@pytest.mark.parametrize("length", [0, 1, 100, MAX_HEADER_BYTES + 1, 2**60, 2**64 - 1])
def test_an_impossible_header_length_is_refused_before_it_is_read(objects: FileObjects, length: int):
    assert f"header length {length} is not possible" in refusal(objects, length.to_bytes(8, "little") + b"{}")


def test_a_header_above_the_cap_is_refused_even_where_the_file_is_long_enough(objects: FileObjects):
    path = objects.root / KEY
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse
    with pytest.raises(BaseModelError, match=f"header length {MAX_HEADER_BYTES + 1} is not possible"):
        read_header(objects, KEY)


@pytest.mark.parametrize("cut", [1, 4, 20])
def test_a_truncated_file_is_refused(objects: FileObjects, cut: int):
    assert "truncated or padded" in refusal(objects, save({"a": torch.ones(8)})[:-cut])


def test_a_padded_file_is_refused(objects: FileObjects):
    assert "truncated or padded" in refusal(objects, save({"a": torch.ones(8)}) + b"\x00")


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])},
        {"a": tensor(0, 8, [2]), "b": tensor(0, 8, [2])},
        {"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])},
        {"a": tensor(4, 12, [2])},
        {"a": tensor(0, 2**50, [2**48])},
    ],
    ids=["overlap", "shared", "hole", "late start", "beyond the end"],
)
def test_offsets_that_do_not_tile_the_data_are_refused(objects: FileObjects, header: dict[str, Any]):
    message = refusal(objects, file_of(header, 12))
    assert "overlap or leave a gap" in message or "its header needs" in message


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (tensor(0, 8, [1]), "tensor 'a' spans 8 bytes, its shape needs 4"),
        (tensor(0, 8, [2], "F64"), "its shape needs 16"),
        (tensor(0, 8, [2], "F33"), "unknown dtype 'F33'"),
        (tensor(0, 8, [-2]), "negative or fractional"),
        (tensor(8, 0, [2]), "spans -8 bytes"),
        (tensor(-8, 0, [2]), "negative or fractional"),
        (tensor(0, 8, [2.0]), "negative or fractional"),
        (tensor(0, 8, ["2"]), "negative or fractional"),
        (tensor(0, 8, [[2]]), "negative or fractional"),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}, "too many values"),
        ({"dtype": "F32", "shape": [2], "data_offsets": 8}, "malformed"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "malformed"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "malformed"),
        ("F32", "malformed"),
        (None, "malformed"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(objects: FileObjects, item: Any, reason: str):
    message = refusal(objects, file_of({"a": item}, 8))
    assert "malformed safetensors header" in message
    assert reason in message


@pytest.mark.parametrize(
    "header",
    [b"not json at all", b"[1, 2]", b'"ab"', b"\xff\xfe{}", b"{" * 100_000, b'{"a": NaN}', b"[" * 100_000],
    ids=["text", "list", "string", "bytes", "braces", "nan", "nested"],
)
def test_a_header_that_is_no_json_object_of_tensors_is_refused(objects: FileObjects, header: bytes):
    assert "malformed safetensors header" in refusal(objects, file_of(header, 0))


@pytest.mark.parametrize("second", [tensor(0, 4, [1]), tensor(4, 8, [1])], ids=["same place", "other place"])
def test_a_name_that_stands_twice_is_refused(objects: FileObjects, second: dict[str, Any]):
    header = f'{{"a": {json.dumps(tensor(0, 4, [1]))}, "a": {json.dumps(second)}}}'
    assert "'a' stands twice" in refusal(objects, file_of(header.encode(), second["data_offsets"][1]))


def test_metadata_is_no_tensor(objects: FileObjects):
    objects.put(KEY, file_of({"__metadata__": {"format": "pt"}, "a": tensor(0, 4, [1])}, 4))
    assert read_header(objects, KEY) == {"a": TensorEntry(KEY, "F32", (1,), *_span(objects.root / KEY, 4))}


def _span(path: Path, num_data_bytes: int) -> tuple[int, int]:
    size = path.stat().st_size
    return size - num_data_bytes, size
