"""The content fingerprint of a checkpoint: it tells two versions apart without reading all weights, and without torch.

It hashes config.json, all headers and sampled byte ranges of every weight file.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from oral_ray.bases.headers import Files, TensorEntry
from oral_ray.config import canonical_json

NUM_RANGES, RANGE_BYTES = 16, 65536


def content_fingerprint(files: Files, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> str:
    """32 hex digits over config.json, all headers, and 16 ranges of 64 KiB of every weight file."""
    digest = hashlib.sha256(canonical_json(config).encode())
    ends: dict[str, int] = {}
    for name, entry in sorted(tensors.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape} {entry.start} {entry.end}\n".encode())
        ends[entry.key] = max(ends.get(entry.key, 0), entry.end)
    for key, end in sorted(ends.items()):
        starts = sorted({max(0, (end - RANGE_BYTES) * i // (NUM_RANGES - 1)) for i in range(NUM_RANGES)})
        for start in starts:
            digest.update(files.range(key, start, min(RANGE_BYTES, end - start)))
    return digest.hexdigest()[:32]
