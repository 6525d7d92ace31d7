"""The tokenised corpus: Parquet shards, one row an adapter, and a manifest with statistics, written last.

`shards/<fingerprint>/part-*.parquet` (columns below), `stats.safetensors`, `manifest.json`. Tokens are gauge-fixed and
not normalised: the statistics come from the whole corpus.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenStats
from oral_ray.config import canonical_json
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.generator.data import CorpusRow
from oral_ray.objects import Objects

COLUMNS = ("digest", "layout", "base", "task", "seed", "step", "tokens")


class ShardManifest(BaseModel):
    """What a tokenised corpus holds; `prompts` are the training wordings of each task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    files: tuple[str, ...]
    num_rows: int
    layouts: dict[str, AdapterLayout]
    bases: tuple[str, ...]
    prompts: dict[str, tuple[str, ...]]
    scales: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...]


def shard_prefix(fingerprint: str) -> str:
    """The key prefix of a tokenised corpus."""
    return f"shards/{fingerprint}/"


def commit_shards(objects: Objects, manifest: ShardManifest, stats: TokenStats) -> None:
    """Write statistics, then the manifest that makes the shards count."""
    prefix = shard_prefix(manifest.fingerprint)
    objects.put(f"{prefix}stats.safetensors", save({name: mean.contiguous() for name, mean in stats.means.items()}))
    objects.put_if_absent(f"{prefix}manifest.json", canonical_json(manifest).encode())


def read_manifest(objects: Objects, fingerprint: str) -> ShardManifest | None:
    """The manifest of a tokenised corpus, or None when it is not (wholly) there."""
    try:
        return ShardManifest.model_validate(json.loads(objects.get(f"{shard_prefix(fingerprint)}manifest.json")))
    except MissingObjectError:
        return None
    except (ValueError, ValidationError) as error:
        raise StoreError(f"{shard_prefix(fingerprint)}manifest.json is damaged: {error}; delete the folder") from None


def read_stats(objects: Objects, manifest: ShardManifest) -> TokenStats:
    """Token statistics of a tokenised corpus."""
    key = f"{shard_prefix(manifest.fingerprint)}stats.safetensors"
    try:
        means = load(objects.get(key))
    except SafetensorError as error:
        raise StoreError(f"{key} in {objects.uri} is damaged: {error}; delete the folder") from None
    return TokenStats({(role, factor): rows for role, factor, rows in manifest.scales}, means)


def corpus_rows(records: Iterable[dict[str, Any]], layouts: dict[str, AdapterLayout]) -> Iterator[CorpusRow]:
    """Turn Parquet rows into corpus rows; StoreError when tokens do not fit their layout."""
    for record in records:
        layout = layouts[record["layout"]]
        values = np.frombuffer(record["tokens"], dtype="<f4").copy()
        if values.size != layout.num_tokens * layout.token_dim:
            raise StoreError(
                f"shard row {record['digest'][:12]} has {values.size} values, its layout needs other; rebuild"
            )
        tokens_LD = torch.from_numpy(values).reshape(layout.num_tokens, layout.token_dim)
        yield CorpusRow(record["digest"], record["layout"], record["base"], record["task"], tokens_LD)
