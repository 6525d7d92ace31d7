"""The tokenised corpus: Parquet shards, one row an adapter, and a manifest with statistics, written last.

`shards/<fingerprint>/<attempt>/part-*.parquet` (columns below) and `stats.safetensors`, then
`shards/<fingerprint>/manifest.json`, which names the attempt: two runs at once cannot mix their files, the first one
that ends counts. Tokens are gauge-fixed and not normalised: the statistics come from the whole corpus.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenStats
from oral_ray.config import Record, canonical_json
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.generator.data import CorpusRow
from oral_ray.local.parquet import parse_table
from oral_ray.objects import Objects


class ShardManifest(Record):
    """What a tokenised corpus holds; `prompts` are the training wordings of each task."""

    fingerprint: str
    attempt: str
    files: tuple[str, ...]
    num_rows: int
    layouts: dict[str, AdapterLayout]
    bases: tuple[str, ...]
    prompts: dict[str, tuple[str, ...]]
    scales: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...]

    @property
    def keys(self) -> list[str]:
        """The keys of the Parquet files, in order."""
        return [shard_prefix(self.fingerprint, self.attempt) + name for name in self.files]


def shard_prefix(fingerprint: str, attempt: str) -> str:
    """The key prefix of the files of one attempt to tokenise a corpus."""
    return f"shards/{fingerprint}/{attempt}/"


def commit_shards(objects: Objects, manifest: ShardManifest, stats: TokenStats) -> bool:
    """Write statistics, then the manifest that makes the shards count; False when another attempt was first."""
    means = save({name: mean.contiguous() for name, mean in stats.means.items()})
    objects.put(_stats_key(manifest), means)
    return objects.put_if_absent(_manifest_key(manifest.fingerprint), canonical_json(manifest).encode())


def read_manifest(objects: Objects, fingerprint: str) -> ShardManifest | None:
    """The manifest of a tokenised corpus, or None when it is not (wholly) there."""
    try:
        return ShardManifest.model_validate(json.loads(objects.get(_manifest_key(fingerprint))))
    except MissingObjectError:
        return None
    except (ValueError, ValidationError) as error:
        raise StoreError(f"{_manifest_key(fingerprint)} is damaged: {error}; delete the folder") from None


def list_manifests(objects: Objects) -> list[ShardManifest]:
    """The manifests of all committed shards, oldest first."""
    found = {info.key: info.modified_s for info in objects.list("shards/") if info.key.endswith("/manifest.json")}
    read = [read_manifest(objects, key.split("/")[1]) for key in sorted(found, key=lambda key: (found[key], key))]
    return [manifest for manifest in read if manifest is not None]


def read_stats(objects: Objects, manifest: ShardManifest) -> TokenStats:
    """Token statistics of a tokenised corpus."""
    key = _stats_key(manifest)
    try:
        means = load(objects.get(key))
    except SafetensorError as error:
        raise StoreError(f"{key} in {objects.uri} is damaged: {error}; delete the folder") from None
    return TokenStats({(role, factor): rows for role, factor, rows in manifest.scales}, means)


def shard_records(objects: Objects, manifest: ShardManifest) -> Iterator[dict[str, Any]]:
    """One pass over the rows of the shards, in order; one file is in memory at a time."""
    for key in manifest.keys:
        yield from parse_table(objects.get(key)).to_pylist()


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


def _manifest_key(fingerprint: str) -> str:
    return f"shards/{fingerprint}/manifest.json"


def _stats_key(manifest: ShardManifest) -> str:
    return f"{shard_prefix(manifest.fingerprint, manifest.attempt)}stats.safetensors"
