"""The content fingerprint of a checkpoint: it tells two versions apart without reading all weights, and without torch.

It hashes config.json, all headers and sampled byte ranges of every weight file.
"""

import hashlib

from oral_ray.bases.spec import read_config, read_tensors
from oral_ray.config import canonical_json
from oral_ray.errors import BaseModelError
from oral_ray.objects import Objects

NUM_RANGES, RANGE_BYTES = 16, 65536


def content_fingerprint(objects: Objects, prefix: str = "") -> str:
    """32 hex digits over config.json, all headers, and 16 ranges of 64 KiB of every weight file."""
    tensors = read_tensors(objects, prefix)
    if not tensors:
        raise BaseModelError(f"{objects.uri}/{prefix} has no safetensors weights; convert the checkpoint first")
    digest = hashlib.sha256(canonical_json(read_config(objects, prefix)).encode())
    ends: dict[str, int] = {}
    for name, entry in sorted(tensors.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape} {entry.start} {entry.end}\n".encode())
        ends[entry.key] = max(ends.get(entry.key, 0), entry.end)
    for key, end in sorted(ends.items()):
        starts = sorted({max(0, (end - RANGE_BYTES) * i // (NUM_RANGES - 1)) for i in range(NUM_RANGES)})
        for start in starts:
            digest.update(objects.range(key, start, min(RANGE_BYTES, end - start)))
    return digest.hexdigest()[:32]
