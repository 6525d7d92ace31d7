"""Adapters in and out of an S3 store, ours beside raw boto3: the same files, concurrency, part size and server, in turn.

`put` takes folders into the store, `publish` copies them into the serving view, `pull` writes them to folders again. Raw
is what a script would do with the same files and no more: put_object and get_object from as many threads for small ones,
upload_file and download_file with as many parts at once for large ones; it checks no digest and keeps no order. Ours and
raw each have a process of their own, so that memory is theirs: the highest during a run over what it was before the first.

    oral-ray bench store --json out/bench/store.json                    # a moto server of its own
    oral-ray bench store uri=s3://bucket/prefix                         # any server, by the usual AWS_* variables
"""

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.numpy import save_file

from oral_ray.adapters.artifact import CARD, CONFIG, PROVENANCE, WEIGHTS, Provenance
from oral_ray.bench.harness import BenchOptions, Result, Row, high_water_bytes, reset_high_water
from oral_ray.bench.servers import moto_process
from oral_ray.config import S3Config, canonical_json
from oral_ray.errors import ConfigError
from oral_ray.objects import S3Objects, in_parallel
from oral_ray.store.adapters import AdapterStore

FILES = (WEIGHTS, PROVENANCE, CONFIG)
NUM_TENSORS = 16


class Options(BenchOptions):
    """Numbers and sizes (in 10^6 bytes) of adapters; `uri` is the server's, empty for one that is started here."""

    repetitions: PositiveInt = 3
    num_small: NonNegativeInt = 1000
    small_mb: PositiveFloat = 1.0
    num_large: NonNegativeInt = 10
    large_mb: PositiveFloat = 200.0
    concurrency: PositiveInt = S3Config().concurrency
    part_bytes: PositiveInt = S3Config().part_bytes
    uri: str = ""


def run(options: Options) -> Result:
    """A row for each of put, publish and pull, of many small and of few large adapters."""
    s3 = S3Config(concurrency=options.concurrency, part_bytes=options.part_bytes)
    with tempfile.TemporaryDirectory(prefix="oral-bench-") as name, _server(options.uri) as uri:
        work = Path(name)
        context = get_context("spawn")
        with ProcessPoolExecutor(1, context) as ours, ProcessPoolExecutor(1, context) as raw:
            rows = [
                row
                for number, megabytes in ((options.num_small, options.small_mb), (options.num_large, options.large_mb))
                if number
                for row in _rows({"ours": ours, "raw": raw}, work, uri, s3, number, megabytes, options.repetitions)
            ]
    return Result(rows=tuple(rows))


def _rows(
    workers: dict[str, ProcessPoolExecutor], work: Path, uri: str, s3: S3Config, number: int, megabytes: float,
    repetitions: int,
) -> Iterator[Row]:  # fmt: skip
    folders = [_make(work / "made" / f"{i:04d}", int(megabytes * 1e6), seed=i) for i in range(number)]
    seconds: dict[tuple[str, str], list[float]] = {}
    peak: dict[tuple[str, str], int] = {}
    for repetition in range(repetitions + 1):  # the first one warms up, with few of them
        chosen = tuple(folders if repetition else folders[: min(number // 10 + 1, s3.concurrency)])
        jobs = {name: Job(f"{uri}/{name}", s3, chosen, work / name) for name in workers}
        order = list(workers)[:: 1 if repetition % 2 else -1]
        for action in ("put", "publish", "pull"):
            for name in order:
                took, grew = workers[name].submit(_measured, name, action, jobs[name]).result()
                if repetition:
                    seconds.setdefault((action, name), []).append(took)
                    peak[action, name] = max(peak.get((action, name), 0), grew)
        for job in jobs.values():
            shutil.rmtree(job.target)
            _clear(job)
    shutil.rmtree(work / "made")
    for action in ("put", "publish", "pull"):
        pair = seconds[action, "ours"], seconds[action, "raw"]
        ratios = [raw / ours for ours, raw in zip(*pair, strict=True)]
        ours, raw = (statistics.median(values) for values in pair)
        yield {
            "what": f"{action} {number:,} x {megabytes:g} MB", "ours, s": ours, "raw, s": raw, "ours / raw": raw / ours,
            "lowest": min(ratios), "highest": max(ratios), "runs": repetitions,
            "ours, MB/s": number * megabytes / ours, "raw, MB/s": number * megabytes / raw,
            "ours, peak MB": peak[action, "ours"] / 1e6, "raw, peak MB": peak[action, "raw"] / 1e6,
            "concurrency x part, MB": s3.concurrency * s3.part_bytes / 1e6,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told: where in the server, how, which folders, and where pulled ones go."""

    uri: str
    s3: S3Config
    folders: tuple[Path, ...]
    target: Path

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and key prefix."""
        parts = urlsplit(self.uri)
        return parts.netloc, parts.path.strip("/")


class Ours:
    """The store's own code."""

    def __init__(self, job: Job) -> None:
        self.objects = S3Objects(*job.place, job.s3)
        self.store, self.job, self.digests = AdapterStore(self.objects), job, dict[Path, str]()

    def put(self) -> None:
        made = in_parallel(self.objects, self.store.put_folder, self.job.folders)
        self.digests = dict(zip(self.job.folders, made, strict=True))

    def publish(self) -> None:
        def publish(folder: Path) -> str:
            return self.store.publish(self.digests[folder], "published", "bench", folder.name)

        list(in_parallel(self.objects, publish, self.job.folders))

    def pull(self) -> None:
        def pull(folder: Path) -> Path:
            return self.store.pull(self.digests[folder], self.job.target / folder.name)

        list(in_parallel(self.objects, pull, self.job.folders))


class Raw:
    """boto3 as it comes, with the same number of requests or parts at once."""

    def __init__(self, job: Job) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.job, self.bucket, self.prefix = job, *job.place
        self.client: Any = boto3.client("s3", config=Config(max_pool_connections=job.s3.concurrency))
        self.config = TransferConfig(max_concurrency=job.s3.concurrency, multipart_chunksize=job.s3.part_bytes)
        self.is_large = (job.folders[0] / WEIGHTS).stat().st_size > 2 * job.s3.part_bytes

    def put(self) -> None:
        self._each(lambda folder: [self._up(folder / name, f"adapters/{folder.name}/{name}") for name in FILES])

    def publish(self) -> None:
        def copy(folder: Path) -> None:
            with tempfile.TemporaryDirectory(prefix="oral-raw-") as name:
                for file in FILES:
                    self._down(f"adapters/{folder.name}/{file}", Path(name) / file)
                (Path(name) / CARD).write_text("# adapter\n" * 40)
                for file in (CARD, *FILES):
                    self._up(Path(name) / file, f"published/bench/{folder.name}/{file}")

        self._each(copy)

    def pull(self) -> None:
        def pull(folder: Path) -> None:
            (self.job.target / folder.name).mkdir(parents=True)
            for name in FILES:
                self._down(f"adapters/{folder.name}/{name}", self.job.target / folder.name / name)

        self._each(pull)

    def _each(self, call: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor(1 if self.is_large else self.job.s3.concurrency) as pool:
            list(pool.map(call, self.job.folders))

    def _up(self, path: Path, key: str) -> None:
        if self.is_large:
            self.client.upload_file(str(path), self.bucket, f"{self.prefix}/{key}", Config=self.config)
        else:
            self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=path.read_bytes())

    def _down(self, key: str, path: Path) -> None:
        if self.is_large:
            self.client.download_file(self.bucket, f"{self.prefix}/{key}", str(path), Config=self.config)
        else:
            body = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"]
            path.write_bytes(body.read())


_kept: dict[str, Any] = {}  # of a worker process: what it measures, and its memory before the first run


def _measured(name: str, action: str, job: Job) -> tuple[float, int]:
    """Seconds of one run, and bytes of memory at its highest over what this process had before its first."""
    if _kept.get("job") != job:
        _kept["side"], _kept["job"] = {"ours": Ours, "raw": Raw}[name](job), job
        _kept.setdefault("before", psutil.Process().memory_info().rss)
    reset_high_water()
    started = time.perf_counter()
    getattr(_kept["side"], action)()
    return time.perf_counter() - started, max(0, high_water_bytes() - _kept["before"])


def _make(folder: Path, num_bytes: int, seed: int) -> Path:
    """A PEFT folder with random weights of about so many bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shape = (8, num_bytes // (4 * 8 * NUM_TENSORS))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
    tensors = {name.format(i): rng.random(shape, np.float32) for i in range(NUM_TENSORS)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "seed": seed}
    (folder / CONFIG).write_text(canonical_json(config))
    (folder / PROVENANCE).write_text(canonical_json(Provenance(origin="bench", base_id="b", base_fingerprint="f")))
    return folder


def _clear(job: Job) -> None:
    """Delete what was written, many objects a call."""
    objects = S3Objects(*job.place, job.s3)
    bucket, prefix = job.place
    keys = [{"Key": f"{prefix}/{info.key}"} for info in objects.list()]
    client = _client()
    for start in range(0, len(keys), 1000):
        client.delete_objects(Bucket=bucket, Delete={"Objects": keys[start : start + 1000], "Quiet": True})


def _client() -> Any:
    import boto3

    return boto3.client("s3")


@contextlib.contextmanager
def _server(uri: str) -> Iterator[str]:
    if uri:
        if not uri.startswith("s3://"):
            raise ConfigError(f"uri is {uri!r}; give s3://bucket/prefix, or nothing for a server of its own")
        yield uri.rstrip("/")
        return
    with moto_process() as address:
        os.environ |= {
            "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        _client().create_bucket(Bucket="bench")
        yield "s3://bench/store"
