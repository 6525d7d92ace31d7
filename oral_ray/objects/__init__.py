"""Object access: `file://` and `s3://` behind one small protocol.

Keys are relative, `/`-separated names below the store's root. A commit is always `put_if_absent` (one PutObject with
`If-None-Match: *`, or an atomic hard link): the first writer wins, later ones are told so. `probe` refuses a store that
does not keep that promise.

    objects = open_objects("s3://bucket/prefix")
    objects.put_if_absent("records/a.json", b"{}")
    for info in objects.list("records/"):
        print(info.key, info.num_bytes)
"""

import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oral_ray.config import StoreConfig
from oral_ray.errors import StoreError
from oral_ray.objects.cache import ReadCache
from oral_ray.objects.file import FileObjects
from oral_ray.objects.once import ReadOnce
from oral_ray.objects.protocol import ObjectInfo, Objects, check_key, in_parallel
from oral_ray.objects.s3 import S3Objects

__all__ = [
    "FileObjects", "ObjectInfo", "Objects", "ReadCache", "ReadOnce", "S3Objects", "check_key", "in_parallel",
    "open_existing", "open_objects", "probe",
]  # fmt: skip


def open_objects(store: str | StoreConfig) -> Objects:
    """Open the store at a folder path, `file:///...` or `s3://bucket/prefix`; nothing is read or written yet."""
    config = StoreConfig(uri=store) if isinstance(store, str) else store
    uri, parts = config.uri, urlsplit(config.uri)
    if parts.scheme == "s3":
        cache = ReadCache(Path(config.cache.folder), config.cache.max_bytes) if config.cache.folder else None
        return S3Objects(parts.netloc, parts.path.strip("/"), config.s3, cache)
    if parts.scheme == "file":
        return FileObjects(Path(unquote(parts.path)))
    if "://" not in uri and uri:
        return FileObjects(Path(uri))
    raise StoreError(f"store uri {uri!r} is not understood; use a folder, file:///folder or s3://bucket/prefix")


def open_existing(store: str | StoreConfig) -> Objects:
    """Open a store to read it; StoreError where its folder is not there. A prefix of a bucket is there, if only empty."""
    objects = open_objects(store)
    if isinstance(objects, FileObjects) and not objects.root.is_dir():
        raise StoreError(f"there is no store at {objects.root}; check the path (--store or ORAL_STORE)")
    return objects


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
