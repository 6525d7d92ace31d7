"""A bucket prefix as an object store. The only importer of boto3 for storage."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects.protocol import ObjectInfo, check_key


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
