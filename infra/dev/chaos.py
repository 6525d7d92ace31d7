"""Kill the nightly job at every write it makes to the store, run it again, and compare with the run nobody touched.

The writes of one run are traced, not sampled: each is a point. At each the process is killed with -9, once before the
write and once inside it (the temporary file is there, the object not yet), then the job is run again to its end, and
garbage is collected without any grace. All the while a reader polls the serving view and the releases. A run is a
process of its own, forked from this one, which has imported everything; its tasks run in it one after another
(`cluster.address=none`), so that the order of the writes is the same every time. `--ray N` also kills N runs on a real
Ray, driver or worker, wherever the write is made.

    make chaos                                     # small store made anew, out/chaos.json
    python infra/dev/chaos.py --store DIR --base DIR --out out/chaos.json
"""

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

import chaos_hook  # noqa: E402
from chaos_look import Reader, orphans, released, sequences, sweep, upload  # noqa: E402
from nightly_fixtures import copied, land, tiny_config  # noqa: E402

from oral_ray.config import Config  # noqa: E402
from oral_ray.errors import OralError  # noqa: E402
from oral_ray.generation import batch  # noqa: E402
from oral_ray.nightly import regenerate  # noqa: E402
from oral_ray.objects import FileObjects, open_objects  # noqa: E402
from oral_ray.pipeline.run import open_run  # noqa: E402
from oral_ray.version import clone_commit  # noqa: E402

os.environ["ORAL_COMMIT"] = clone_commit()  # one code for all runs, whoever edits the clone meanwhile

# The encoder of prompts is loaded once, here; it reads no store.
batch.ConditionEncoder = functools.cache(batch.ConditionEncoder)  # type: ignore[misc]


def main() -> int:
    """Run what was asked for, write the rows, print them; 1 when a row is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a trained store of tests/tiny.toml (default: made anew, 2 minutes)")
    parser.add_argument("--base", type=Path, help="the tiny base that the store was made from")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "chaos.json")
    parser.add_argument("--ray", type=int, default=3, help="points at which a run on a real Ray is killed (default 3)")
    parser.add_argument("--points", type=int, nargs=2, default=(0, None), metavar="N", help="only writes N to M")
    parser.add_argument("--only", choices=("kill", "race", "faults", "ray"), help="one part of it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oral-chaos-") as name:
        work = Path(name)
        pristine, base = (args.store, args.base) if args.store else build_store(work)
        one, two = (Chaos(work / str(len(bases)), pristine, base, bases) for bases in (["chaos"], ["chaos", "tiny-t2"]))
        rows: list[dict[str, Any]] = []
        parts = {
            "kill": lambda: one.kills(slice(*args.points)),
            "race": two.races,
            "faults": two.faults,
            "ray": lambda: one.on_ray(args.ray),
        }
        for part, run in parts.items():
            for row in run() if args.only in (None, part) else ():
                rows.append(row)
                print(json.dumps(row), flush=True)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if not row["release_equal"] or row["partial_reads"] or row["orphans_after_gc"]]
    print(f"{len(rows)} rows, {len(bad)} bad, {sum(row['looks'] for row in rows)} looks of the reader; {args.out}")
    return 1 if bad or not rows else 0


def build_store(work: Path) -> tuple[Path, Path]:
    """The trained store of tests/tiny.toml, made by the real jobs on Ray, and its base."""
    from conftest import save_model, save_tokenizer
    from transformers import BertConfig, BertModel

    base = work / "tiny-bert"
    tokenizer = save_tokenizer(base, ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)]))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    save_model(
        BertModel, BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=0, **sizes), base
    )
    subprocess.run(
        [sys.executable, ROOT / "jobs/train.py", "--config", ROOT / "tests/tiny.toml", "--store", work / "trained",
         f"out={work / 'out'}", f"bases.versions.0.origin.source={base}"],
        check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return work / "trained", base


class Chaos:
    """The experiments, each over a fresh copy of one store at one path, so that uris are the same."""

    def __init__(self, work: Path, pristine: Path, base: Path, bases: Sequence[str]) -> None:
        work.mkdir()
        self.base, self._bases = base, bases
        self.store, self._landed, self._trace = work / "store", work / "landed", work / "trace"
        copied(pristine, self._landed)
        land(self._landed, "chaos")
        self.config = self._config(self.store)
        batch.ConditionEncoder(self.config.condition)

    @functools.cached_property
    def undisturbed(self) -> tuple[list[str], dict[str, bytes]]:
        """The writes of a run that nobody kills, and what it releases."""
        with self._fresh():
            assert in_process(self._run) == 0
        return self._trace.read_text().splitlines(), released(FileObjects(self.store))

    def kills(self, chosen: slice) -> Iterator[dict[str, Any]]:
        """Before and inside every chosen write."""
        for number, point in [*enumerate(self.undisturbed[0])][chosen]:
            for where in ("before", "inside") if point.startswith(("put", "upload")) else ("before",):
                with self._fresh() as reader:
                    outcome = in_process(lambda n=number, w=where: self._run(kill_at=n, inside=w == "inside"))
                    killed = "killed" if outcome == -signal.SIGKILL else f"not killed, exit code {outcome}"
                    again = in_process(self._run)
                    removed = sweep(self.store)
                outcome = f"{killed}, again {again}, gc {removed}"
                yield self._row(f"{number:03d} {where} {point}", outcome, reader)

    def races(self) -> Iterator[dict[str, Any]]:
        """Two and three runs at once; no item may be lost, one release a base must come out."""
        assert self.undisturbed
        for num_runs in (2, 3, 2):
            with self._fresh() as reader:
                codes = in_processes([self._run] * num_runs)
                removed = sweep(self.store)
            outcome = f"exit codes {codes}, releases {sequences(self.store)}, gc {removed}"
            yield self._row(f"{num_runs} runs at once", outcome, reader)

    def faults(self) -> Iterator[dict[str, Any]]:
        """On S3 behind a proxy that spoils 20% of the calls: one run, and two at once."""
        import boto3
        from s3_servers import faulty_process, spoilt

        from oral_ray.bench.servers import moto_process

        assert self.undisturbed
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        with moto_process() as server:
            boto3.client("s3", endpoint_url=server).create_bucket(Bucket="chaos")
            for num_runs in (1, 2):
                uri = f"s3://chaos/{num_runs}"
                os.environ["AWS_ENDPOINT_URL"] = server
                upload(self._landed, uri)
                config = self._config(uri)
                with faulty_process(server, seed=num_runs) as proxy, Reader(uri, pause_s=0.2) as reader:
                    os.environ["AWS_ENDPOINT_URL"] = proxy
                    started = time.monotonic()
                    codes = in_processes([lambda c=config: run_job(c)] * num_runs, timeout_s=900)
                    took_s = time.monotonic() - started
                    calls = spoilt(proxy)
                    os.environ["AWS_ENDPOINT_URL"] = server
                    removed = sweep(uri)
                outcome = f"exit codes {codes}, releases {sequences(uri)}, gc {removed}, {took_s:.0f} s, calls {calls}"
                yield self._row(f"{num_runs} run(s) behind a proxy that spoils 20% of the calls", outcome, reader, uri)

    def on_ray(self, num_points: int) -> Iterator[dict[str, Any]]:
        """Real jobs on a private Ray, killed at some writes, in whichever process makes them.

        The first is the release, which the driver makes; the others are spread over the writes, whose order is Ray's.
        """
        num_writes = len(self.undisturbed[0])
        spread = range(num_writes // num_points, num_writes, max(1, num_writes // num_points))
        for point in ["releases/", *spread][:num_points]:
            with self._fresh() as reader:
                first = self._job(kill_at=point)
                again = self._job()
                removed = sweep(self.store)
            died = chaos_hook.killed_file(self._trace).read_text()
            outcome = f"{died} killed, exit code {first}, again {again}, gc {removed}"
            yield self._row(f"{'first of' if isinstance(point, str) else 'write'} {point} on Ray", outcome, reader)

    @contextmanager
    def _fresh(self) -> Iterator["Reader"]:
        for path in (self._trace, chaos_hook.killed_file(self._trace)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self._landed, self.store, copy_function=os.link)
        with Reader(str(self.store)) as reader:
            yield reader

    def _config(self, store: str | Path) -> Config:
        return tiny_config(store, self.base, f"regenerate.bases={json.dumps(list(self._bases))}")

    def _run(self, kill_at: int = -1, inside: bool = False) -> int:
        chaos_hook.install(self._trace, kill_at, inside)
        return run_job(self.config)

    def _job(self, kill_at: int | str = -1) -> int:
        """A run as a user starts it; a sitecustomize in every Python process of it counts writes in one file."""
        hook = self.store.parent / "hook"
        hook.mkdir(exist_ok=True)
        (hook / "sitecustomize.py").write_text(
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
            f"import pathlib, chaos_hook; chaos_hook.install(pathlib.Path({str(self._trace)!r}), {kill_at!r})\n"
        )
        environment = os.environ | {"PYTHONPATH": f"{hook}:{ROOT}"}
        command = [
            sys.executable, str(ROOT / "jobs/regenerate.py"), "--config", str(ROOT / "tests/tiny.toml"),
            "--store", str(self.store), f"bases.versions.0.origin.source={self.base}", f"out={self.store.parent}/out",
            f"regenerate.bases={json.dumps(list(self._bases))}",
        ]  # fmt: skip
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=300).returncode

    def _row(self, point: str, outcome: str, reader: "Reader", uri: str = "") -> dict[str, Any]:
        objects, theirs = open_objects(uri or str(self.store)), FileObjects(self.store).uri
        got = {key: data.replace(objects.uri.encode(), theirs.encode()) for key, data in released(objects).items()}
        return {
            "point": point,
            "outcome": outcome,
            "release_equal": got == self.undisturbed[1],
            "partial_reads": reader.partial,
            "orphans_after_gc": orphans(objects),
            "looks": reader.looks,
        }


def run_job(config: Config) -> int:
    """The exit code that jobs/regenerate.py would have."""
    try:
        return 3 if regenerate.run_night(open_run(config)).failed else 0
    except OralError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def in_process(run: Callable[[], int]) -> int:
    """The exit code of a run in a forked process, minus the signal that killed it."""
    return in_processes([run])[0]


def in_processes(runs: list[Callable[[], int]], timeout_s: float = 300.0) -> list[int]:
    """The same of several at once; one that takes longer is killed."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(runs))

    def child(run: Callable[[], int]) -> None:
        start.wait()
        sys.exit(run())

    processes = [context.Process(target=child, args=(run,)) for run in runs]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
    return [int(process.exitcode or 0) for process in processes]


if __name__ == "__main__":
    sys.exit(main())
