"""Shards in the store: the first attempt that ends counts, and another one cannot touch its files."""

import torch

from oral_ray.adapters.tokens import TokenStats
from oral_ray.objects import FileObjects
from oral_ray.store.shards import ShardManifest, commit_shards, read_manifest, read_stats


def attempt(name: str, value: float) -> tuple[ShardManifest, TokenStats]:
    manifest = ShardManifest(
        fingerprint="f", attempt=name, files=("part-000000.parquet", "part-000001.parquet"), num_rows=2, layouts={},
        base_ids=("b",), prompts={"t": ("p",)}, scales=(("q", "A", ((0.0, 1.0),)),),
    )  # fmt: skip
    return manifest, TokenStats({("q", "A"): ((0.0, 1.0),)}, {"layout": torch.full((2, 4), value)})


def test_the_first_attempt_counts_and_a_later_one_is_told_so(objects: FileObjects):
    (first, first_stats), (second, second_stats) = attempt("one", 1.0), attempt("two", 2.0)
    assert read_manifest(objects, "f") is None
    assert commit_shards(objects, first, first_stats)
    assert not commit_shards(objects, second, second_stats)
    kept = read_manifest(objects, "f")
    assert kept == first
    stats = read_stats(objects, first)
    assert stats.scales == first_stats.scales
    assert torch.equal(stats.means["layout"], first_stats.means["layout"])


def test_keys_lie_in_the_folder_of_the_attempt():
    assert attempt("one", 1.0)[0].keys == ["shards/f/one/part-000000.parquet", "shards/f/one/part-000001.parquet"]
