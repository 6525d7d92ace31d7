"""Object access: `file://` and `s3://` behind one small protocol. The only importer of boto3 for storage.

Keys are relative, `/`-separated names below the store's root. A commit is always `put_if_absent` (one PutObject with
`If-None-Match: *`, or an atomic hard link): the first writer wins, later ones are told so. `probe` refuses a store that
does not keep that promise.

    objects = open_objects("s3://bucket/prefix")
    objects.put_if_absent("records/a.json", b"{}")
    for info in objects.list("records/"):
        print(info.key, info.num_bytes)
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from oral_ray.errors import MissingObjectError, StoreError

_PART = re.compile(r"[^\x00-\x1f\\/]+")
_TEMPORARY = ".oral-tmp-"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object: key, size in bytes, time of last change in seconds since 1970.

    `tag` is another one whenever the object was replaced: S3's ETag; inode and time of change in ns of a file.
    """

    key: str
    num_bytes: int
    modified_s: float
    tag: str


class Objects(Protocol):
    """What a store must offer: `list` is sorted by key, a range is cut at the object's end.

    A missing key raises MissingObjectError, any other failure StoreError.
    """

    uri: str

    def get(self, key: str) -> bytes: ...
    def range(self, key: str, start: int, length: int) -> bytes: ...
    def num_bytes(self, key: str) -> int: ...
    def exists(self, key: str) -> bool: ...
    def put(self, key: str, data: bytes) -> None: ...
    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def upload(self, path: Path, key: str) -> None: ...
    def download(self, key: str, path: Path) -> None: ...
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...
    def delete(self, key: str) -> None: ...


def open_objects(uri: str) -> Objects:
    """Open the store at a folder path, `file:///...` or `s3://bucket/prefix`; nothing is read or written yet."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return S3Objects(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file":
        return FileObjects(Path(unquote(parts.path)))
    if "://" not in uri and uri:
        return FileObjects(Path(uri))
    raise StoreError(f"store uri {uri!r} is not understood; use a folder, file:///folder or s3://bucket/prefix")


def check_key(key: str) -> str:
    """Return the key if it is a plain relative name, else raise StoreError (no `..`, no control characters)."""
    if not key or len(key) > 1024 or any(p in ("", ".", "..") or not _PART.fullmatch(p) for p in key.split("/")):
        raise StoreError(f"object key {key[:200]!r} is not a plain relative name like 'adapters/abc/file.json'")
    return key


def probe(objects: Objects) -> None:
    """Prove that the store can be written and that create-if-absent creates once; leaves nothing behind.

    Raises StoreError for a store that cannot be written or silently overwrites.
    """
    key = f"probe/{uuid.uuid4().hex}"
    first, second, kept = objects.put_if_absent(key, b"first"), objects.put_if_absent(key, b"second"), objects.get(key)
    objects.delete(key)
    if (first, second, kept) != (True, False, b"first"):
        raise StoreError(
            f"store {objects.uri} ignores create-if-absent (a second create gave {second}, left {kept!r}); "
            "use a server that honours If-None-Match: *, such as AWS S3, Ceph radosgw or MinIO"
        )


class FileObjects:
    """A folder as an object store. Writes are atomic (temporary file, then rename or hard link)."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = f"file://{self.root}"

    def path(self, key: str) -> Path:
        """The file of a key; StoreError where a symbolic link leads out of the store."""
        path = self.root / check_key(key)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"object {key!r} of {self.uri} is a link that leaves the store; replace it by a file")
        return path

    def get(self, key: str) -> bytes:
        with self._reading(key):
            return self.path(key).read_bytes()

    def range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key), self.path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def num_bytes(self, key: str) -> int:
        with self._reading(key):
            path = self.path(key)
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def put(self, key: str, data: bytes) -> None:
        with self._writing(key) as temporary:
            temporary.write_bytes(data)
            temporary.replace(self.path(key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._writing(key) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, self.path(key))
            except FileExistsError:
                return False
            return True

    def upload(self, path: Path, key: str) -> None:
        with self._writing(key) as temporary:
            shutil.copyfile(path, temporary)
            temporary.replace(self.path(key))

    def download(self, key: str, path: Path) -> None:
        with self._reading(key):
            shutil.copyfile(self.path(key), path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix.startswith("/") or ".." in prefix.split("/"):
            raise StoreError(f"prefix {prefix!r} leaves the store {self.uri}")
        keys = [
            Path(where, name).relative_to(self.root).as_posix()
            for where, folders, names in os.walk(self.root / prefix.rpartition("/")[0])
            for name in (*names, *(n for n in folders if Path(where, n).is_symlink()))  # not followed, but not hidden
            if not name.startswith(_TEMPORARY)
        ]
        for key in sorted(key for key in keys if key.startswith(prefix)):
            with contextlib.suppress(FileNotFoundError):
                stat = (self.root / key).stat()
                yield ObjectInfo(key, stat.st_size, stat.st_mtime, f"{stat.st_ino}-{stat.st_mtime_ns}")

    def delete(self, key: str) -> None:
        with self._reading(key):
            self.path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingObjectError(f"no object {key!r} in {self.uri}") from None
        except OSError as error:
            raise StoreError(f"cannot read {key!r} in {self.uri}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        target = self.path(key)
        temporary: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            temporary.chmod(0o644)
            yield temporary
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(f"cannot write {key!r} in {self.uri}: {reason}; check space and permissions") from None
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


class S3Objects:
    """A bucket prefix. Endpoint, region and keys come from the environment, as boto3 reads them."""

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from botocore.config import Config

        if not bucket:
            raise StoreError("store uri 's3://' names no bucket; use s3://bucket/prefix")
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client: Any = boto3.client(
            "s3",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 8},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=32,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def get(self, key: str) -> bytes:
        with self._errors("read", key):
            return self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"].read()

    def range(self, key: str, start: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        name, wanted = self._key(key), f"bytes={start}-{start + length - 1}"
        if length <= 0:
            return b""
        with self._errors("read", key):
            try:
                return self._client.get_object(Bucket=self.bucket, Key=name, Range=wanted)["Body"].read()
            except ClientError as error:
                if error.response["Error"].get("Code") == "InvalidRange":  # it starts past the end
                    return b""
                raise

    def num_bytes(self, key: str) -> int:
        with self._errors("read", key):
            return int(self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"])

    def exists(self, key: str) -> bool:
        try:
            self.num_bytes(key)
        except MissingObjectError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(8):
            with self._errors("write", key):
                try:
                    self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    code = error.response["Error"].get("Code")
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if code not in ("ConditionalRequestConflict", "409"):
                        raise
            time.sleep(0.05 * 2**attempt)
        raise StoreError(f"create-if-absent of {key!r} in {self.uri} kept conflicting; try again")

    def upload(self, path: Path, key: str) -> None:
        with self._errors("write", key):
            self._client.upload_file(str(path), self.bucket, self._key(key))

    def download(self, key: str, path: Path) -> None:
        with self._errors("read", key):
            self._client.download_file(self.bucket, self._key(key), str(path))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    key = item["Key"][len(self.prefix) :]
                    if not key.endswith("/"):  # a folder marker, which pyarrow and consoles leave, is no object of ours
                        modified_s = item["LastModified"].timestamp()
                        yield ObjectInfo(key, int(item["Size"]), modified_s, item["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response["Error"].get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise MissingObjectError(f"no object {key!r} in {self.uri}") from None
            if code == "NoSuchBucket":
                raise StoreError(f"bucket {self.bucket!r} does not exist; create it first") from None
            raise StoreError(f"cannot {verb} {key!r} in {self.uri}: {error}; check keys and permissions") from None
        except (BotoCoreError, Boto3Error) as error:
            raise StoreError(f"cannot {verb} {key!r} in {self.uri}: {error}; check AWS_ENDPOINT_URL and keys") from None
