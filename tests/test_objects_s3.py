"""What only a store across a network has: lost answers, throttling, half uploads, servers that lie or never answer."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_servers import faulty_process, overwriting_server, spoilt

from oral_ray.config import S3Config
from oral_ray.errors import StoreError
from oral_ray.objects import FileObjects, Objects, S3Objects, in_parallel, probe

FAST = S3Config(attempts=8, connect_timeout_s=2, read_timeout_s=5)


def through(
    endpoint: str, s3_objects: S3Objects, monkeypatch: pytest.MonkeyPatch, config: S3Config = FAST
) -> S3Objects:
    """The same bucket by another address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return S3Objects(s3_objects.bucket, "some/prefix", config)


@pytest.fixture
def faulty(s3_endpoint: str, s3_objects: S3Objects, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Objects]:
    """The bucket behind a proxy that spoils every fifth call."""
    with faulty_process(s3_endpoint, latency_s=0.2) as address:
        yield through(address, s3_objects, monkeypatch)
        counts = spoilt(address)
        assert sum(counts[name] for name in counts if name != "calls") > 0, counts


def test_nothing_is_lost_and_nothing_damaged_when_every_fifth_call_fails(
    faulty: S3Objects, s3_objects: S3Objects, tmp_path: Path
):
    blobs = {f"a/{number:02d}": bytes([number]) * (1000 + number) for number in range(24)}
    assert all(in_parallel(faulty, lambda item: faulty.put_if_absent(*item), blobs.items()))
    assert [info.key for info in faulty.list("a/")] == sorted(blobs)
    assert dict(zip(blobs, in_parallel(faulty, faulty.get, blobs), strict=True)) == blobs
    large = bytes(range(256)) * (17 * 4096)  # 17 MiB, three parts
    (tmp_path / "up").write_bytes(large)
    faulty.upload(tmp_path / "up", "large")
    faulty.download("large", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == large == s3_objects.get("large")


def test_a_create_whose_answer_was_lost_is_known_as_ours(
    s3_endpoint: str, s3_objects: S3Objects, monkeypatch: pytest.MonkeyPatch
):
    with faulty_process(s3_endpoint, rate=0.5, faults=["cut"]) as address:
        faulty = through(address, s3_objects, monkeypatch)
        assert all(faulty.put_if_absent(f"k{number}", b"%d" % number) for number in range(12))
        assert not any(faulty.put_if_absent(f"k{number}", b"other") for number in range(12))
        assert spoilt(address)["cut"] > 3
    assert all(s3_objects.get(f"k{number}") == b"%d" % number for number in range(12))


@pytest.mark.parametrize("fault", ["500", "503", "reset"])
def test_a_server_that_only_fails_is_given_up_after_the_configured_attempts(
    s3_endpoint: str, s3_objects: S3Objects, monkeypatch: pytest.MonkeyPatch, fault: str, tmp_path: Path
):
    (tmp_path / "file").write_bytes(b"1")
    with faulty_process(s3_endpoint, rate=1, faults=[fault]) as address:
        faulty = through(address, s3_objects, monkeypatch, S3Config(attempts=2))
        for number, ask in enumerate(
            (lambda: faulty.get("a"), lambda: faulty.put("a", b""), lambda: faulty.upload(tmp_path / "file", "a")), 1
        ):
            with pytest.raises(StoreError, match=r"cannot (read|write) 'a'"):
                ask()
            assert spoilt(address)["calls"] == 2 * number


def test_a_server_that_never_answers_is_given_up_after_the_timeout(
    s3_objects: S3Objects, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = through(address, s3_objects, monkeypatch, S3Config(attempts=2, read_timeout_s=0.3))
        started = time.perf_counter()
        with pytest.raises(StoreError, match=r"cannot read 'a'.*timeout.*check AWS_ENDPOINT_URL"):
            store.get("a")
        assert time.perf_counter() - started < 3  # twice, and a pause of at most a second


def test_the_probe_refuses_a_server_that_ignores_create_if_absent(monkeypatch: pytest.MonkeyPatch):
    server = overwriting_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(StoreError, match=r"s3://bucket ignores create-if-absent \(a second create gave True"):
        probe(S3Objects("bucket", "", FAST))
    server.shutdown()
    server.server_close()


def test_every_write_is_signed_with_the_sha256_of_its_body(s3_objects: S3Objects, tmp_path: Path):
    sent: list[tuple[str, bytes]] = []

    def look(request, **_) -> None:
        if request.method == "PUT":
            body = request.body if isinstance(request.body, bytes) else request.body.read()
            if not isinstance(request.body, bytes):
                request.body.seek(0)
            header = request.headers["X-Amz-Content-SHA256"]
            sent.append((header if isinstance(header, str) else header.decode(), body))

    s3_objects._client.meta.events.register("before-send.s3", look)
    (tmp_path / "large").write_bytes(bytes(17 << 20))
    s3_objects.put("a", b"1")
    s3_objects.put_if_absent("b", b"2")
    s3_objects.upload(tmp_path / "large", "c")
    assert sorted(len(body) for _, body in sent) == [1, 1, 1 << 20, 8 << 20, 8 << 20]
    assert all(header == hashlib.sha256(body).hexdigest() for header, body in sent)
    assert s3_objects._client.meta.config.s3["payload_signing_enabled"], "over TLS it would be left out by default"


@pytest.mark.parametrize("num_bytes", [0, 1, 5 << 20, (16 << 20) - 1, 16 << 20, (16 << 20) + 1])
def test_a_file_of_any_size_comes_back_as_it_was(s3_objects: S3Objects, tmp_path: Path, num_bytes: int):
    data = (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]
    (tmp_path / "up").write_bytes(data)
    s3_objects.upload(tmp_path / "up", "a")
    s3_objects.download("a", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data


def test_unfinished_uploads_are_told_and_can_be_discarded(s3_objects: S3Objects):
    s3_objects.put("whole", b"1")
    begun = s3_objects._client.create_multipart_upload(Bucket=s3_objects.bucket, Key=f"{s3_objects.prefix}half")
    s3_objects._client.create_multipart_upload(Bucket=s3_objects.bucket, Key="outside/half")
    [left] = s3_objects.leftovers()
    assert (left.key, left.tag) == ("half", begun["UploadId"])
    assert left.modified_s > 1.2e9  # moto says 2010 of every upload
    s3_objects.discard(left)
    s3_objects.discard(left)
    assert list(s3_objects.leftovers()) == []
    assert s3_objects.get("whole") == b"1"


def test_temporary_files_of_a_killed_writer_are_told_and_can_be_discarded(objects: FileObjects):
    objects.put("a/b", b"1")
    (objects.root / "a/.oral-tmp-x").write_bytes(b"half")
    [left] = objects.leftovers()
    assert (left.key, left.num_bytes) == ("a/.oral-tmp-x", 4)
    assert [info.key for info in objects.list()] == ["a/b"]
    objects.discard(left)
    assert list(objects.leftovers()) == []


class Counting(FileObjects):
    """A folder store that knows how many reads are under way."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.now = self.most = 0
        self.lock = threading.Lock()

    def get(self, key: str) -> bytes:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005)
        try:
            return super().get(key)
        finally:
            with self.lock:
                self.now -= 1


def test_many_objects_are_moved_at_once_but_never_more_than_the_store_allows(tmp_path: Path):
    store = Counting(tmp_path)
    keys = [f"{number:03d}" for number in range(40)]
    for key in keys:
        store.put(key, key.encode())
    assert [data.decode() for data in in_parallel(store, store.get, keys)] == keys
    assert 1 < store.most <= store.concurrency


def test_of_many_objects_the_first_failure_is_raised_and_no_more_are_started(objects: Objects):
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        if number == 2:
            raise StoreError("object 2")
        return number

    taken = in_parallel(objects, work, range(1000))
    with pytest.raises(StoreError, match="object 2"):
        list(taken)
    assert len(started) <= 2 + 2 * objects.concurrency
