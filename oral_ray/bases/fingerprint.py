"""The content fingerprint of a checkpoint: it tells two versions apart without reading all weights, and without torch.

It covers what changes answers: config.json, tokenizer, chat template and processor files whole; of the weights all
headers and sampled byte ranges of every file. Training moves every tensor, so 16 ranges of 64 KiB tell versions apart; an
edit of single rows of one tensor of a large file can lie between them and is not seen.
"""

import hashlib
import json
from collections.abc import Iterator

from oral_ray.bases.checkpoint import Checkpoint, behaviour_files
from oral_ray.bases.headers import Files, Ranges

NUM_RANGES, RANGE_BYTES = 16, 65536
_CHUNK_BYTES = 1 << 24


def content_fingerprint(files: Files, prefix: str, checkpoint: Checkpoint) -> str:
    """32 hex digits over config.json (its values), the files that change behaviour, all headers, sampled weights."""
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True, separators=(",", ":")).encode())
    for name in behaviour_files(checkpoint.files):
        content = hashlib.sha256()
        for chunk in _chunks(files, prefix + name):
            content.update(chunk)
        digest.update(f"{name} {content.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    ends: dict[str, int] = {}
    for name, entry in sorted(checkpoint.tensors.items()):
        digest.update(
            f"{name} {entry.dtype} {entry.shape} {entry.start} {entry.end}\n".encode("utf-8", "backslashreplace")
        )
        ends[entry.key] = max(ends.get(entry.key, 0), entry.end)
    for key, end in sorted(ends.items()):
        for sample in samples(files, key, end):
            digest.update(sample)
    return digest.hexdigest()[:32]


def samples(files: Ranges, key: str, num_bytes: int) -> Iterator[bytes]:
    """16 ranges of 64 KiB of a file, evenly from its first byte to its last; all of it where that is no more."""
    if num_bytes <= NUM_RANGES * RANGE_BYTES:
        yield files.range(key, 0, num_bytes)
        return
    for i in range(NUM_RANGES):
        yield files.range(key, (num_bytes - RANGE_BYTES) * i // (NUM_RANGES - 1), RANGE_BYTES)


def _chunks(files: Ranges, key: str) -> Iterator[bytes]:
    num_bytes = files.num_bytes(key)
    for start in range(0, num_bytes, _CHUNK_BYTES):
        yield files.range(key, start, min(_CHUNK_BYTES, num_bytes - start))
