"""What a store holds and loses: faults 10b, 18d, 20, 21, 23."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fault_checks.bases import described
from fault_checks.place import FaultError, Place, check, refusal

LISTINGS = "tests/test_store_listings.py::"
REPLACED = "tests/wild/test_bases_loading.py::test_a_base_that_is_replaced_between_fingerprint_and_load_is_refused"


def artifact(place: Place, seed: int = 0) -> Any:
    """An adapter of rank 2 for the tiny Llama, its values from a seed."""
    from oral_ray.adapters.artifact import Provenance, build_artifact
    from oral_ray.adapters.layout import AdapterLayout
    from oral_ray.config import LoraSettings

    layout = AdapterLayout.of(described(place.inputs / "sound/bases/llama").spec, LoraSettings(r=2), token_dim=32)
    rng = torch.Generator().manual_seed(seed)
    factors = {
        slot.module: (torch.randn(2, slot.d_in, generator=rng), torch.randn(slot.d_out, 2, generator=rng))
        for slot in layout.slots
    }
    return build_artifact(factors, layout, Provenance(origin="trained", base="b", base_fingerprint="f"))


def stored(place: Place) -> tuple[Any, str]:
    """A store with an old adapter that a record names, and its digest."""
    from oral_ray.objects import FileObjects
    from oral_ray.store.adapters import AdapterStore
    from oral_ray.store.records import Records

    objects = FileObjects(place.work / "store")
    digest = AdapterStore(objects).put(artifact(place))
    Records(objects).commit("generated", "f", {"digest": digest})
    for path in objects.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return objects, digest


def released(place: Place) -> Path:
    """A store with one released adapter."""
    from oral_ray.objects import FileObjects
    from oral_ray.store.adapters import AdapterStore
    from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

    objects = FileObjects(place.work / "store")
    store = AdapterStore(objects)
    digest = store.put(artifact(place))
    uri = store.publish(digest, "published", "b", "spam-1")
    adapter = ReleasedAdapter(task="t", arm="a", adapter_id="spam-1", digest=digest, uri=uri, score=1.0, scores={})
    name: dict[str, Any] = {"name" if "name" in Release.model_fields else "recipe": "one"}
    ReleaseStore(objects).append(Release(base="b", base_fingerprint="f", generator="g", adapters=(adapter,), **name))
    return objects.root


@check("9c", "a release names its configuration as a name",
       "tests/test_nightly_regenerate.py::test_a_release_says_what_went_into_it")  # fmt: skip
def release_name(place: Place) -> None:
    from oral_ray.store.releases import Release

    if "recipe" in Release.model_fields and "name" not in Release.model_fields:
        raise FaultError(
            "what it calls `recipe` is the name of the configuration; everywhere else a recipe is a fingerprint"
        )


@check("10b", "fsck of a store that is not there says so",
       "tests/test_store_releases.py::test_a_store_that_is_not_there_is_an_error_and_is_not_made")  # fmt: skip
def no_store(place: Place) -> None:
    said = place.cli("store", "fsck", "--store", place.work / "typo")
    if said.code == 0:
        raise FaultError(said.last)


@check("18d", "fsck looks at what records name",
       "tests/test_store.py::test_fsck_says_which_record_names_what_is_not_there_and_what_makes_it_again")  # fmt: skip
def fsck_of_records(place: Place) -> None:
    from oral_ray.store.records import Records

    objects, _ = stored(place)
    Records(objects).commit("corpus", "x", {"digests": ["c" * 64]})
    said = place.cli("store", "fsck", "--store", objects.root)
    if said.code == 0:
        raise FaultError(f"two records, one adapter: {said.last}")


@check("20c", "fsck leaves no thread of Arrow behind, which may abort the interpreter at its end",
       "tests/test_local_parquet.py::test_reading_starts_no_thread",
       "tests/test_local_parquet.py::test_nothing_reads_tables_in_a_pool_of_threads")  # fmt: skip
def threads_of_arrow(place: Place) -> None:
    code = (
        "import os, sys, pandas, pyarrow.parquet, pyarrow.dataset, oral_ray.store.fsck\n"
        "from oral_ray.cli import main\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = tasks()\nmain(['store', 'fsck', '--store', sys.argv[1]])\nprint('left', tasks() - before)"
    )
    said = place.python("-c", code, place.store)
    if not said.last.startswith("left "):
        raise FaultError(said.last)
    if said.last != "left 0":
        raise FaultError(f"{said.last.removeprefix('left ')} threads are left when fsck has ended")


PAGE = """<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Name>b</Name><Prefix>{prefix}</Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>
</ListBucketResult>"""


class Truncated(BaseHTTPRequestHandler):
    """An S3 server whose every listing says that it goes on, and not where."""

    def do_GET(self) -> None:
        body = PAGE.format(prefix="").encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@check("21b", "a listing that says truncated without a token is one sentence",
       LISTINGS + "test_a_listing_that_says_that_it_goes_on_and_not_where_is_an_error")  # fmt: skip
def truncated_listing(place: Place) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Truncated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    about = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    said = place.python("-m", "oral_ray.cli", "list", "--store", "s3://bucket/prefix", more=about)
    if said.is_traceback or said.code == 0:
        raise FaultError(said.last or "takes the page for the whole listing")


@check("21c", "a dropped page of a listing makes gc offer nothing that is named",
       LISTINGS + "test_a_page_that_is_dropped_once_stops_gc",
       LISTINGS + "test_a_listing_that_leaves_out_a_record_stops_gc")  # fmt: skip
def dropped_page(place: Place) -> None:
    from oral_ray.objects import FileObjects, ObjectInfo
    from oral_ray.store.garbage import plan_collection

    class Dropping(FileObjects):
        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            dropped = ("records/", "records/generated/f.json")
            return (info for info in super().list(prefix) if (prefix, info.key) != dropped)

    objects, _ = stored(place)
    planned: list[Any] = []
    if not refusal(lambda: planned.extend(plan_collection(Dropping(objects.root)))) and planned:
        raise FaultError(f"gc offers {planned[0].name[:24]}..., which a record names")


@check("21d", "a clock two days ahead makes nothing old", LISTINGS + "test_a_clock_that_is_ahead_makes_nothing_old")
def clock_ahead(place: Place) -> None:
    from oral_ray.objects import FileObjects
    from oral_ray.store.adapters import AdapterStore
    from oral_ray.store.garbage import plan_collection

    objects, real = FileObjects(place.work / "store"), time.time
    AdapterStore(objects).put(artifact(place))
    with mock.patch.object(time, "time", lambda: real() + 2 * 86_400):
        planned = plan_collection(objects)
    if planned:
        raise FaultError(f"gc offers {planned[0].name[:24]}..., written this moment and not yet recorded")


@check("21e", "a base that is replaced between fingerprint and load is not loaded", REPLACED)
def replaced_base(place: Place) -> None:
    from oral_ray.bases import loading
    from oral_ray.bases.catalog import describe_base
    from oral_ray.objects import FileObjects

    objects = FileObjects(place.work / "store")
    folder = Path(shutil.copytree(place.inputs / "bases/as it is", objects.root / "bases/v1"))
    record, before = describe_base(objects, "bases/v1/", "v1"), loading.load_folder

    def late(*args: Any) -> Any:
        shutil.copy(place.inputs / "bases/single file beside shards/model.safetensors", folder / "model.safetensors")
        return before(*args)

    with mock.patch.object(loading, "load_folder", late):
        if not refusal(lambda: loading.load_base(record)):
            raise FaultError("loaded with the new weights under the old fingerprint")


@check("23a", "a copied store says where its adapters are",
       "tests/test_store_releases.py::test_a_copied_store_says_where_its_adapters_are")  # fmt: skip
def copied_store(place: Place) -> None:
    root = released(place)
    moved = Path(shutil.copytree(root, place.work / "moved"))
    said = place.cli("list", "--json", "--store", moved)
    if str(moved) not in said.text or str(root) in said.text.replace(str(moved), ""):
        raise FaultError(f"the copy names the old place: {said.last}")


@check("23b", "the README's second Ray head has a dashboard of its own, and says how to stop it",
       "tests/test_docs.py::test_a_second_ray_head_of_the_readme_has_ports_of_its_own_and_the_next_line_submits_to_it",
)  # fmt: skip
def second_head(place: Place) -> None:
    text = (place.code / "README.md").read_text()
    heads = [line for line in text.replace("\\\n", " ").splitlines() if line.strip().startswith("ray start --head")]
    if not any("--dashboard-port" in line for line in heads):
        raise FaultError(f"{len(heads)} lines start a head, none names --dashboard-port")
    if "ray stop" not in text:
        raise FaultError("does not say how to stop the head")
