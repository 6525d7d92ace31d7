"""A bucket prefix as an object store. The only importer of boto3 for storage.

Bytes are checked on the way: every write is signed with the SHA-256 of its body, over TLS too, and a server refuses a body
that has another one (a CRC32 trailer is newer, and radosgw 16 would store it as content). Throttling, 5xx and lost
connections are tried again by botocore, with jitter; an answer that breaks off is asked for again here. Files are moved in
parts: at most `concurrency` of `part_bytes` are under way.
"""

import contextlib
import functools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from oral_ray.config import S3Config
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects.cache import ReadCache
from oral_ray.objects.protocol import ObjectInfo, check_key
from oral_ray.objects.unfinished import unfinished

_R = TypeVar("_R")
_IO_BYTES = 1 << 20  # read from a connection and written to disk at once


class _Whole(NamedTuple):
    """What the answer to a part says of the object: its size, and a tag that changes with its content."""

    num_bytes: int
    tag: str


class S3Objects:
    """A bucket prefix. Endpoint, region and keys come from the environment, as boto3 reads them."""

    def __init__(
        self, bucket: str, prefix: str, config: S3Config | None = None, cache: ReadCache | None = None
    ) -> None:
        import boto3
        from botocore.config import Config

        if not bucket:
            raise StoreError("store uri 's3://' names no bucket; use s3://bucket/prefix")
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.config, self.cache = config or S3Config(), cache
        self.concurrency = self.config.concurrency
        self._slots = threading.BoundedSemaphore(self.concurrency)  # parts under way, whoever asked for them
        self._client: Any = boto3.client(
            "s3",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": self.config.attempts},
                connect_timeout=self.config.connect_timeout_s,
                read_timeout=self.config.read_timeout_s,
                max_pool_connections=2 * self.concurrency + 2,  # transfers, and small requests beside them
                s3={"payload_signing_enabled": True},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def get(self, key: str) -> bytes:
        with self._errors("read", key):
            return self._body(Key=self._key(key))

    def range(self, key: str, start: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        name, wanted = self._key(key), f"bytes={start}-{start + length - 1}"
        if length <= 0:
            return b""
        with self._errors("read", key):
            try:
                return self._body(Key=name, Range=wanted)
            except ClientError as error:
                if error.response["Error"].get("Code") == "InvalidRange":  # it starts past the end
                    return b""
                raise

    def num_bytes(self, key: str) -> int:
        with self._errors("read", key):
            return int(self._ask("head_object", Key=self._key(key))["ContentLength"])

    def exists(self, key: str) -> bool:
        try:
            self.num_bytes(key)
        except MissingObjectError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self._ask("put_object", Key=self._key(key), Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        name, again = self._key(key), False
        for attempt in range(self.config.attempts):
            with self._errors("write", key):
                try:
                    self._client.put_object(Bucket=self.bucket, Key=name, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    code = error.response["Error"].get("Code")
                    if code in ("PreconditionFailed", "412"):
                        # An earlier try may have been ours: written, its answer lost.
                        again = again or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                        return again and self.get(key) == data
                    if code not in ("ConditionalRequestConflict", "409"):
                        raise
                except _broken():
                    again = True
            _wait(attempt)
        raise StoreError(f"create-if-absent of {key!r} in {self.uri} kept conflicting or breaking off; try again")

    def upload(self, path: Path, key: str) -> None:
        name = self._key(key)
        with self._errors("write", key), _local(path):
            if path.stat().st_size <= self.config.part_bytes:  # one request, without the transfer manager's threads
                with self._slots:
                    self._ask("put_object", Key=name, Body=path.read_bytes())
            else:
                self._again(lambda: self._transfers.upload(str(path), self.bucket, name).result())

    def download(self, key: str, path: Path) -> None:
        name = self._key(key)
        with self._errors("read", key), _local(path), unfinished(path) as temporary:
            with temporary.open("wb") as file:
                first = self._part(name, file.fileno(), 0)
                starts = range(self.config.part_bytes, first.num_bytes, self.config.part_bytes)
                parts = [self._parts.submit(self._part, name, file.fileno(), start) for start in starts]
                try:
                    changed = any(part.result() != first for part in parts)
                finally:
                    for part in parts:
                        part.cancel()
                    wait(parts)
            if changed:
                raise StoreError(f"{key!r} in {self.uri} was replaced while it was read; read it again")
            temporary.replace(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors("list", prefix):
            for page in self._pages("list_objects_v2", ["ContinuationToken"], Prefix=self.prefix + prefix):
                for item in page.get("Contents", ()):
                    key = item["Key"][len(self.prefix) :]
                    if not key.endswith("/"):  # a folder marker, which pyarrow and consoles leave, is no object of ours
                        modified_s = item["LastModified"].timestamp()
                        yield ObjectInfo(key, int(item["Size"]), modified_s, item["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self._ask("delete_object", Key=self._key(key))

    def leftovers(self) -> Iterator[ObjectInfo]:
        with self._errors("list", "uploads of"):
            for page in self._pages("list_multipart_uploads", ["KeyMarker", "UploadIdMarker"], Prefix=self.prefix):
                for item in page.get("Uploads", ()):
                    key = item["Key"][len(self.prefix) :]
                    yield ObjectInfo(key, 0, item["Initiated"].timestamp(), item["UploadId"])

    def discard(self, leftover: ObjectInfo) -> None:
        from botocore.exceptions import ClientError

        name = self._key(leftover.key)
        with self._errors("discard", leftover.key):
            try:
                self._ask("abort_multipart_upload", Key=name, UploadId=leftover.tag)
            except ClientError as error:
                if error.response["Error"].get("Code") != "NoSuchUpload":  # it was finished or discarded meanwhile
                    raise

    @functools.cached_property
    def _parts(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.concurrency, thread_name_prefix="parts")

    @functools.cached_property
    def _transfers(self) -> Any:
        """The one manager of uploads in parts of this store, so that many files at once share its bounds."""
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        part_bytes = self.config.part_bytes
        config = TransferConfig(
            multipart_threshold=2 * part_bytes,
            multipart_chunksize=part_bytes,
            max_concurrency=self.concurrency,
            preferred_transfer_client="classic",  # the other one takes neither these bounds nor these retries
        )
        return create_transfer_manager(self._client, config)

    def _part(self, name: str, file: int, start: int) -> "_Whole":
        """Write one part of an object to its place in an open file; what the answer says of the whole object."""
        from botocore.exceptions import ClientError

        wanted = f"bytes={start}-{start + self.config.part_bytes - 1}"

        def request() -> _Whole:
            answer, place = self._client.get_object(Bucket=self.bucket, Key=name, Range=wanted), start
            for chunk in answer["Body"].iter_chunks(_IO_BYTES):
                os.pwrite(file, chunk, place)
                place += len(chunk)
            _, _, num_bytes = answer.get("ContentRange", "").rpartition("/")  # absent from who ignores the range
            return _Whole(int(num_bytes or place), answer["ETag"])

        with self._slots:
            try:
                return self._again(request)
            except ClientError as error:
                if error.response["Error"].get("Code") == "InvalidRange" and not start:  # an empty object has no range
                    return _Whole(0, "")
                raise

    def _body(self, **request: str) -> bytes:
        return self._again(lambda: self._client.get_object(Bucket=self.bucket, **request)["Body"].read())

    def _ask(self, operation: str, **request: Any) -> dict[str, Any]:
        return self._again(lambda: getattr(self._client, operation)(Bucket=self.bucket, **request))

    def _pages(self, operation: str, markers: Sequence[str], **request: str) -> Iterator[dict[str, Any]]:
        """Every page of a listing; a paginator of botocore would lose all of them when one breaks off."""
        while True:
            page = self._ask(operation, **request)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {marker: str(page.get(f"Next{marker}") or "") for marker in markers}
            if not all(following.values()) or following.items() <= request.items():
                raise StoreError(
                    f"a listing of {self.uri} says that it goes on and not where (no new {', '.join(following)} in the "
                    f"answer to {operation}); the server, or what is between, breaks the protocol of S3"
                )
            request |= following

    def _again(self, request: Callable[[], _R]) -> _R:
        """Do what botocore leaves: an answer that breaks off is asked for again; a timeout it has tried often enough."""
        from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

        for attempt in range(1, self.config.attempts):
            try:
                return request()
            except (ConnectTimeoutError, ReadTimeoutError):
                raise
            except _broken():
                _wait(attempt)
        return request()

    def link(self, key: str, valid_s: int) -> str | None:
        with self._errors("link to", key):
            wanted = {"Bucket": self.bucket, "Key": self._key(key)}
            return str(self._client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=valid_s))

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            code = error.response["Error"].get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise MissingObjectError(f"no object {key!r} in {self.uri}") from None
            if code == "NoSuchBucket":
                raise StoreError(f"bucket {self.bucket!r} does not exist; create it first") from None
            raise StoreError(f"cannot {verb} {key!r} in {self.uri}: {error}; check keys and permissions") from None
        except (BotoCoreError, Boto3Error, RetriesExceededError, HTTPError) as error:
            raise StoreError(f"cannot {verb} {key!r} in {self.uri}: {error}; check AWS_ENDPOINT_URL and keys") from None


def _broken() -> tuple[type[Exception], ...]:
    """How an answer that breaks off shows; urllib3's own errors where it was no object but an error or a listing."""
    from botocore.exceptions import IncompleteReadError, ResponseStreamingError
    from urllib3.exceptions import HTTPError

    return IncompleteReadError, ResponseStreamingError, HTTPError


@contextlib.contextmanager
def _local(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot transfer {path}: {error.strerror or error}; check path, space, permissions") from None


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))
