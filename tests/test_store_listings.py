"""gc deletes nothing when a listing lies, when this machine's clock is ahead, or when a name came after the plan."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.errors import StoreError
from oral_ray.objects import FileObjects, ObjectInfo, S3Objects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.garbage import collect, plan_collection, store_clock_s
from oral_ray.store.records import Journal, Records

MakeArtifact = Callable[..., AdapterArtifact]


class Dropping(FileObjects):
    """A store whose listings leave out keys: what `drops(prefix, key)` says."""

    drops: Callable[[str, str], bool] = staticmethod(lambda prefix, key: False)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (info for info in super().list(prefix) if not self.drops(prefix, info.key))


def stored(objects: FileObjects, make_artifact: MakeArtifact) -> str:
    """An old adapter that a record names."""
    digest = AdapterStore(objects).put(make_artifact(seed=1))
    Records(objects).commit("generated", "f", {"digest": digest})
    for path in objects.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return digest


@pytest.mark.parametrize("listing", ["records/", "records/generated/"])
def test_a_listing_that_leaves_out_a_record_stops_gc(objects: FileObjects, make_artifact: MakeArtifact, listing: str):
    digest = stored(objects, make_artifact)
    lying = Dropping(objects.root)
    lying.drops = lambda prefix, key: prefix == listing and key == "records/generated/f.json"
    with pytest.raises(StoreError, match=r"leaves out records/generated/f\.json, which is there: .* mend the server"):
        plan_collection(lying)
    with pytest.raises(StoreError, match="leaves out"):
        collect(lying, [])
    assert AdapterStore(objects).has(digest)


def test_a_page_that_is_dropped_once_stops_gc(objects: FileObjects, make_artifact: MakeArtifact):
    stored(objects, make_artifact)
    objects.put("runs/a.json", b"{}")
    os.utime(objects.root / "runs/a.json", (1e9, 1e9))
    for turn in (1, 2):
        lying, asked = Dropping(objects.root), []

        def drops(prefix: str, key: str, asked: list[str] = asked, turn: int = turn) -> bool:
            asked.append(prefix)
            return prefix == "runs/" and asked.count("runs/") == turn

        lying.drops = drops
        with pytest.raises(StoreError, match=r"runs/ leaves out runs/a\.json"):
            plan_collection(lying)


def test_a_clock_that_is_ahead_makes_nothing_old(
    objects: FileObjects, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
):
    AdapterStore(objects).put(make_artifact(seed=1))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * 86_400)
    assert plan_collection(objects) == []
    assert abs(store_clock_s(objects) - real()) < 60
    assert list(objects.list("probe/")) == []


def test_what_is_named_or_written_after_the_plan_is_not_deleted(objects: FileObjects, make_artifact: MakeArtifact):
    store = AdapterStore(objects)
    named, written, orphan = (store.put(make_artifact(seed=seed)) for seed in range(3))
    objects.put("shards/f/a1/part.parquet", b"1")
    for path in objects.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    planned = plan_collection(objects)
    assert len(planned) == 4
    Records(objects).commit("generated", "f", {"digest": named})
    objects.put(f"adapters/{written}/provenance.json", b"{}")
    objects.put("shards/f/manifest.json", b'{"attempt": "a1"}')
    assert collect(objects, planned) == 3
    assert [store.has(digest) for digest in (named, written, orphan)] == [True, True, False]
    assert objects.exists("shards/f/a1/part.parquet")


def test_what_a_long_listing_left_out_of_an_adapter_goes_with_it(objects: FileObjects, make_artifact: MakeArtifact):
    digest = AdapterStore(objects).put(make_artifact(seed=1))
    for path in objects.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    lying = Dropping(objects.root)
    lying.drops = lambda prefix, key: prefix == "adapters/" and key.endswith("adapter_config.json")
    assert collect(lying, plan_collection(lying)) == 3
    assert list(objects.list(f"adapters/{digest}/")) == []


def test_a_journal_whose_listing_leaves_out_its_last_entry_is_an_error(objects: FileObjects):
    Journal(objects, "current/n/").amend(lambda last: {"number": last})
    lying = Dropping(objects.root)
    lying.drops = lambda prefix, key: True
    with pytest.raises(StoreError, match=r"current/n/00000001\.json .* is there, and its listing leaves it out"):
        Journal(lying, "current/n/").amend(lambda last: {"number": last})


@pytest.mark.parametrize("page", [{}, {"NextContinuationToken": ""}, {"NextContinuationToken": "same"}])
def test_a_listing_that_says_that_it_goes_on_and_not_where_is_an_error(
    page: dict[str, str], s3_objects: S3Objects, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(s3_objects, "_ask", lambda operation, **request: {"IsTruncated": True, "Contents": []} | page)
    with pytest.raises(StoreError, match=r"says that it goes on and not where \(no new ContinuationToken"):
        list(s3_objects.list("records/"))
    if not page:
        with pytest.raises(StoreError, match="no new KeyMarker, UploadIdMarker"):
            list(s3_objects.leftovers())


def test_the_clock_of_a_bucket_is_the_servers(s3_objects: S3Objects):
    assert abs(store_clock_s(s3_objects) - time.time()) < 60
