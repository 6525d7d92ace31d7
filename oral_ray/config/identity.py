"""The one spelling of a value that is hashed, fingerprints of recipes, and how randomness is split."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from oral_ray.errors import ConfigError


def canonical_json(value: Any) -> str:
    """The one JSON spelling of a value: sorted keys, no spaces, UTF-8; NaN and unknown types raise ConfigError."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"value has no canonical JSON form: {error}") from None


def fingerprint(*values: Any) -> str:
    """32 hex digits of the SHA-256 over the canonical JSON of each value, in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(canonical_json(value).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:32]


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a seed and a path of names: the only way randomness is split in oral_ray."""
    digest = hashlib.sha256("/".join([str(seed), *map(str, names)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") & ((1 << 63) - 1)
