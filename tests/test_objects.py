"""One contract for every store, run on a folder and on an S3 server; the probe refuses a store that lies.

`make test-s3` runs the S3 half on radosgw (a real Ceph), as it is and behind a proxy that spoils every fifth call.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects import FileObjects, Objects, S3Objects, check_key, open_objects, probe

BAD_KEYS = ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "a\x00", "a\nb", "a\n"]


@pytest.fixture(params=["s3"] if os.environ.get("ORAL_TEST_S3_ENDPOINT") else ["file", "s3"])
def store(request: pytest.FixtureRequest) -> Objects:
    """An empty store of each kind."""
    return request.getfixturevalue("objects" if request.param == "file" else "s3_objects")


def test_what_is_put_is_got_and_put_again_replaces_it(store: Objects):
    store.put("a/b.bin", b"first")
    store.put("a/b.bin", b"second\x00")
    assert store.get("a/b.bin") == b"second\x00"
    assert store.num_bytes("a/b.bin") == 7
    assert store.exists("a/b.bin")


def test_only_the_first_create_of_a_key_wins(store: Objects):
    assert store.put_if_absent("a/b", b"first")
    assert not store.put_if_absent("a/b", b"second")
    assert store.get("a/b") == b"first"


def test_a_race_of_creates_has_one_winner_and_keeps_its_bytes(store: Objects):
    start, won = threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        if store.put_if_absent("race", b"%d" % number * 100_000):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("race") == b"%d" % won[0] * 100_000
    assert [info.key for info in store.list()] == ["race"]


def test_a_folder_marker_of_another_tool_is_no_object(s3_objects: S3Objects):
    s3_objects.put("a/b", b"1")
    s3_objects._client.put_object(Bucket=s3_objects.bucket, Key=f"{s3_objects.prefix}a/", Body=b"")
    assert [info.key for info in s3_objects.list()] == ["a/b"]


def test_an_object_that_was_replaced_by_one_as_long_has_another_tag(store: Objects):
    store.put("a", b"first")
    [before] = store.list()
    assert [before] == list(store.list())
    store.put("a", b"other")
    [after] = store.list()
    assert (after.num_bytes, before.num_bytes) == (5, 5)
    assert after.tag != before.tag


def test_a_link_that_leads_nowhere_or_in_a_circle_is_listed(objects: FileObjects):
    objects.put("a/b", b"1")
    (objects.root / "a/circle").symlink_to("circle")
    (objects.root / "a/gone").symlink_to("nothing")
    assert [info.key for info in objects.list()] == ["a/b", "a/circle", "a/gone"]
    with pytest.raises(MissingObjectError):
        objects.get("a/gone")
    with pytest.raises(StoreError, match=r"cannot read 'a/circle' in .*: Too many levels of symbolic links"):
        objects.get("a/circle")
    assert not objects.exists("a/gone")


def test_a_folder_that_cannot_be_read_is_no_empty_one(objects: FileObjects, monkeypatch: pytest.MonkeyPatch):
    objects.put("a/b", b"1")
    assert objects.children("a") == {"b": False} and objects.children("none") == {}

    def refusing(path: Path, *_: object, **__: object):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("oral_ray.objects.file.os.scandir", refusing)
    for look in (lambda: [*objects.list("a/")], lambda: objects.children("a")):
        with pytest.raises(StoreError, match=r"cannot list '.*/a' in .*: Permission denied; make it readable"):
            look()


def test_a_linked_folder_is_listed_by_its_own_name_and_not_followed(objects: FileObjects, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("x")
    objects.put("a/b", b"1")
    (objects.root / "a/linked").symlink_to(tmp_path / "elsewhere")
    assert [info.key for info in objects.list("a/")] == ["a/b", "a/linked"]
    with pytest.raises(StoreError, match=r"'a/linked'.*link that leaves the store"):
        objects.get("a/linked")


@pytest.mark.parametrize("write", ["put", "put_if_absent"])
def test_a_store_that_goes_away_is_not_made_again(objects: FileObjects, tmp_path: Path, write: str):
    getattr(objects, write)("a/b", b"1")
    objects.root.rename(tmp_path / "away")
    with pytest.raises(StoreError, match=r"cannot write 'c/d/e'"):
        getattr(objects, write)("c/d/e", b"2")
    assert not objects.root.exists()
    (tmp_path / "away").rename(objects.root)
    getattr(objects, write)("c/d/e", b"2")
    assert objects.get("c/d/e") == b"2"
    assert FileObjects(tmp_path / "new" / "one").put_if_absent("x", b"3")  # one that was never there is made


def test_a_range_is_cut_at_the_end_of_the_object(store: Objects):
    store.put("a", b"0123456789")
    assert store.range("a", 2, 3) == b"234"
    assert store.range("a", 8, 100) == b"89"
    assert store.range("a", 3, 0) == b""
    assert store.range("a", 10, 5) == b""
    store.put("empty", b"")
    assert store.range("empty", 0, 8) == b""


def test_a_listing_is_sorted_by_key_and_filtered_by_prefix(store: Objects):
    for key in ("b/2", "a", "b/10", "b/c/1", "bb"):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == ["a", "b/10", "b/2", "b/c/1", "bb"]
    assert [info.key for info in store.list("b/")] == ["b/10", "b/2", "b/c/1"]
    assert [info.key for info in store.list("b")] == ["b/10", "b/2", "b/c/1", "bb"]
    assert [info.key for info in store.list("nothing/")] == []
    assert [info.num_bytes for info in store.list("b/")] == [4, 3, 5]
    assert all(info.modified_s > 1.6e9 for info in store.list())


def test_a_deleted_object_is_gone_and_deleting_it_again_is_fine(store: Objects):
    store.put("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
    assert list(store.list()) == []


def test_a_file_is_uploaded_and_downloaded_byte_by_byte(store: Objects, tmp_path: Path):
    data = bytes(range(256)) * 1000
    (tmp_path / "up").write_bytes(data)
    store.upload(tmp_path / "up", "a/file")
    store.download("a/file", tmp_path / "down")
    assert store.get("a/file") == (tmp_path / "down").read_bytes() == data


@pytest.mark.parametrize("key", ["none", "folder"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda store, key, folder: store.get(key),
        lambda store, key, folder: store.range(key, 0, 1),
        lambda store, key, folder: store.num_bytes(key),
        lambda store, key, folder: store.download(key, folder / "down"),
    ],
    ids=["get", "range", "num_bytes", "download"],
)
def test_asking_for_what_is_no_object_names_the_key(
    store: Objects, key: str, ask: Callable[[Objects, str, Path], object], tmp_path: Path
):
    store.put("folder/a", b"1")
    with pytest.raises(MissingObjectError, match=f"no object '{key}' in {store.uri}"):
        ask(store, key, tmp_path)
    assert not store.exists(key)
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize("key", BAD_KEYS)
def test_no_operation_takes_a_key_that_is_no_plain_name(store: Objects, key: str, tmp_path: Path):
    for ask in (
        lambda: store.get(key),
        lambda: store.range(key, 0, 1),
        lambda: store.exists(key),
        lambda: store.put(key, b""),
        lambda: store.put_if_absent(key, b""),
        lambda: store.delete(key),
        lambda: store.upload(Path(__file__), key),
        lambda: store.download(key, tmp_path / "down"),
    ):
        with pytest.raises(StoreError, match="is not a plain relative name"):
            ask()


def test_a_key_of_ordinary_names_is_taken_up_to_1024_characters():
    for key in ("a", "a/b.c", "..a/b..", "ü/ b", "x" * 1024):
        assert check_key(key) == key
    with pytest.raises(StoreError, match="is not a plain relative name"):
        check_key("x" * 1025)


def test_the_probe_passes_on_an_honest_store_and_leaves_nothing_behind(store: Objects):
    probe(store)
    assert list(store.list()) == []


class Overwriting(FileObjects):
    """A server that does not know If-None-Match."""

    says = True

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return self.says


class OverwritingQuietly(Overwriting):
    """A server that answers the second create as it should and overwrites all the same."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.says = not self.exists(key)
        return super().put_if_absent(key, data)


@pytest.mark.parametrize("liar", [Overwriting, OverwritingQuietly])
def test_the_probe_refuses_a_store_that_overwrites_on_create(liar: type[FileObjects], tmp_path: Path):
    with pytest.raises(StoreError, match=r"ignores create-if-absent.*If-None-Match"):
        probe(liar(tmp_path))
    assert list(FileObjects(tmp_path).list()) == []


def test_a_store_below_a_file_cannot_be_written_and_says_so_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write 'probe/.*' in file://.*/file/store: .*check space") as caught:
        probe(FileObjects(tmp_path / "file" / "store"))
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_neither_the_object_nor_a_temporary_file(objects: FileObjects, tmp_path: Path):
    with pytest.raises(StoreError, match="cannot write"):
        objects.upload(tmp_path / "none", "a/b")
    assert not any(path.is_file() for path in objects.root.rglob("*"))


def test_a_link_that_leaves_the_folder_is_refused(objects: FileObjects, tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    objects.put("a/b", b"")
    (objects.root / "a/link").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=r"'a/link'.*link that leaves the store"):
        objects.get("a/link")


@pytest.mark.parametrize("prefix", ["../", "a/../../", "/etc/", "/"])
def test_a_listing_stays_in_the_folder(objects: FileObjects, prefix: str):
    objects.put("a", b"")
    with pytest.raises(StoreError, match="leaves the store"):
        list(objects.list(prefix))


def test_a_store_is_opened_by_uri(tmp_path: Path, s3_objects: S3Objects):
    spaced = tmp_path / "with space"
    FileObjects(spaced).put("a", b"1")
    assert open_objects(str(spaced)).get("a") == open_objects(f"file://{tmp_path}/with%20space").get("a") == b"1"
    s3_objects.put("a", b"2")
    assert open_objects(s3_objects.uri).get("a") == b"2"
    assert open_objects(f"{s3_objects.uri}/").uri == s3_objects.uri
    assert open_objects(f"s3://{s3_objects.bucket}").get("some/prefix/a") == b"2"


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "gs://bucket", "s3://"])
def test_a_uri_that_is_not_understood_is_an_error_that_shows_the_form(uri: str):
    with pytest.raises(StoreError, match=r"use .*s3://bucket/prefix"):
        open_objects(uri)


def test_a_bucket_that_does_not_exist_is_named(s3_objects: S3Objects):
    nowhere = S3Objects("no-such-bucket", "")
    for ask in (lambda: nowhere.put("a", b""), lambda: nowhere.get("a"), lambda: list(nowhere.list())):
        with pytest.raises(StoreError, match="bucket 'no-such-bucket' does not exist; create it first"):
            ask()
