"""Train on several Ray nodes of this machine, take a worker, a node or the head away, and record what it costs.

The head has no CPU; every other node has one, which a training worker holds as long as it lives. The run is that of
`oral_ray.bench.runs`: Ray Train, Ray Data from Parquet files, checkpoints in a folder store; its driver is a process of
its own. A row says at which step it happened, from which step the run went on and after how many seconds, with how many
workers, and whether the loss curve is to the bit that of the run nobody touched.

    make node-loss                                   # out/node_loss.json
    python infra/dev/node_loss.py --only "node, a spare one" --out out/node_loss.json
"""

import argparse
import contextlib
import json
import logging
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
os.environ.pop("RAY_ADDRESS", None)  # it would win over the cluster that is made here
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}

import psutil  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from oral_ray import cluster  # noqa: E402
from oral_ray.bench.environment import describe_environment  # noqa: E402
from oral_ray.bench.runs import Job, Shape, build_corpus, run_training  # noqa: E402
from oral_ray.config import ClusterConfig, GeneratorConfig, MlpDenoiserConfig, TrainingConfig, canonical_json  # noqa: E402

logger = logging.getLogger("node_loss")
STEPS, CHECKPOINT_EVERY, REPORT_EVERY = 40, 10, 2
REPORT_S = 3.0  # Ray Train takes in one report every 2 s; when they come faster, checkpoints count later and later
POOL_BYTES = 4 << 10  # two adapters: a worker reads its share of 16 through Ray Data again and again, to the end
NAME = "run"
OBJECT_STORE = 100 << 20
SCENARIOS = (
    "node, a spare one", "nothing", "node, fewer workers", "worker", "head, same command again", "node, one comes later",
    "node, a spare one, streaming", "nothing, streaming",
)  # fmt: skip


def main() -> int:
    """Run the scenarios, write the rows; 1 when a run did not finish or lost more than a checkpoint interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="these only")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "node_loss.json")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds to wait for a run to go on")
    parser.add_argument("--drive", nargs=3, metavar=("JOB", "ADDRESS", "CURVE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.drive:
        return drive(Path(args.drive[0]), args.drive[1], Path(args.drive[2]))
    environment, rows, curves = describe_environment(), [], {}
    for what in args.only or SCENARIOS:
        row = scenario(what, args.patience)
        curves[what] = row.pop("curve")
        rows.append(row)
        for known in rows:  # against the run nobody touched, once there is one
            if untouched := curves.get("nothing, streaming" if "streaming" in known["lost"] else "nothing"):
                known["same_curve"] = curves[known["lost"]] == untouched
        logger.info("%s", row)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({"command": shlex.join(sys.argv), "environment": environment, "rows": rows}, indent=1) + "\n"
        )
    return int(any(not row["finished"] or row["lost_steps"] > CHECKPOINT_EVERY for row in rows))


def drive(job_file: Path, address: str, curve_file: Path) -> int:
    """The driver: run the job on the cluster and write its loss curve."""
    with cluster.session(ClusterConfig(address=address), determinism=True):
        curve = run_training(Job.model_validate_json(job_file.read_text()), NAME)
    curve_file.write_text(json.dumps([[row["step"], row["loss"]] for row in curve]))
    return 0


def scenario(what: str, patience_s: float) -> dict[str, Any]:
    """One run in which one thing is lost at about a third of its steps, between two checkpoints."""
    with tempfile.TemporaryDirectory(prefix="oral-node-loss-") as name:
        folder = Path(name)
        shape = Shape(hidden=32, layers=2, r=2, token_dim=32)
        manifest = build_corpus(f"file://{folder}/store", shape, num_rows=32, num_files=4)
        training = TrainingConfig(
            num_workers=2, min_workers=1 if "fewer" in what else None, steps=STEPS, batch_size=4,
            validate_every=REPORT_EVERY, checkpoint_every=CHECKPOINT_EVERY, validation_frac=0.0, warmup_steps=2,
            max_failures=5, cache_bytes=POOL_BYTES if "streaming" in what else 1 << 30,
        )  # fmt: skip
        job = Job(
            store=f"file://{folder}/store", shards=manifest.fingerprint, training=training, determinism=True,
            step_s=REPORT_S,
            generator=GeneratorConfig(
                width=32, head_dim=32, num_layers=1, denoiser=MlpDenoiserConfig(width=32, num_blocks=1)
            ),
            progress=str(folder / "progress.jsonl"),
        )  # fmt: skip
        (folder / "job.json").write_text(canonical_json(job))
        with ray_nodes(2 + ("spare" in what)) as nodes:
            row = run(what, nodes, folder, patience_s)
        return row | {"checkpoint_every": CHECKPOINT_EVERY}


def run(what: str, nodes: Cluster, folder: Path, patience_s: float) -> dict[str, Any]:
    """Start the driver, do the damage, wait for the end."""
    driver, curve_file = start_driver(nodes, folder), folder / "curve.json"
    row: dict[str, Any] = {"lost": what, "workers": [], "lost_steps": 0, "recovery_s": None}
    started, said_after_s = time.time(), None
    try:
        if not what.startswith("nothing"):
            if not wait_for(
                folder, lambda lines: any(line["step"] > CHECKPOINT_EVERY + 5 for line in lines), patience_s
            ):
                raise SystemExit(f"{what}: the run did not get as far as being disturbed in {patience_s:g} s")
            before = progress(folder)
            killed_at = time.time()
            damage(what, nodes, before[-1]["pid"])
            done = [line for line in progress(folder) if line["pid"] == before[-1]["pid"]]
            if "later" in what:
                time.sleep(10)
                nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
            if "head" in what:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.wait(patience_s)
                    said_after_s = round(time.time() - killed_at, 1)
                stop(driver)
                with ray_nodes(2) as fresh:
                    driver = start_driver(fresh, folder)
                    finish(row, driver, folder, len(done), patience_s)
            else:
                finish(row, driver, folder, len(done), patience_s)
            after = [line for line in progress(folder)[len(done) :] if line["pid"] != done[-1]["pid"]]
            if after:
                row |= {
                    "step": done[-1]["step"], "went_on_after_step": after[0]["step"] - REPORT_EVERY,
                    "lost_steps": done[-1]["step"] - after[0]["step"] + REPORT_EVERY,
                    "recovery_s": round(after[0]["time"] - killed_at, 1),
                }  # fmt: skip
        else:
            finish(row, driver, folder, 0, patience_s)
    finally:
        stop(driver)
    row["workers"] = list(dict.fromkeys(line["num_workers"] for line in progress(folder)))
    row |= {"finished": curve_file.exists(), "wall_s": round(time.time() - started, 1)}
    if said_after_s is not None:
        row["driver_ended_after_s"] = said_after_s
    return row | {"curve": json.loads(curve_file.read_text()) if curve_file.exists() else None}


def finish(
    row: dict[str, Any], driver: subprocess.Popen[bytes], folder: Path, num_done: int, patience_s: float
) -> None:
    """Wait until the run goes on, then for its end; a run that does not go on is left at that."""
    if wait_for(folder, lambda lines: len(lines) > num_done, patience_s):
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(patience_s + STEPS / REPORT_EVERY * REPORT_S)
    else:
        row["hung"] = True


def damage(what: str, nodes: Cluster, pid: int) -> None:
    """End the worker of rank 0, or its whole node, or the head, by SIGKILL."""
    if what == "worker":
        os.kill(pid, signal.SIGKILL)
    elif "head" in what:
        end_node(nodes.head_node)
    else:
        raylet = psutil.Process(pid).ppid()
        [lost] = [node for node in nodes.worker_nodes if raylet in pids_of(node)]
        end_node(lost)


def pids_of(node: Any) -> list[int]:
    """The processes that a node was started as."""
    return [process.process.pid for of_kind in node.all_processes.values() for process in of_kind]


def end_node(node: Any) -> None:
    """A machine that is switched off: no process of the node has a chance to say good-bye."""
    processes = [psutil.Process(pid) for pid in pids_of(node) if psutil.pid_exists(pid)]
    processes += [child for process in processes for child in process.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def start_driver(nodes: Cluster, folder: Path) -> subprocess.Popen[bytes]:
    """The driver on a cluster, its log beside the run."""
    command = [sys.executable, __file__, "--drive", str(folder / "job.json"), nodes.address, str(folder / "curve.json")]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a driver that is still there."""
    process.kill()
    process.wait()


def progress(folder: Path) -> list[dict[str, Any]]:
    """What rank 0 has reported so far, a line a step; a line that is being written does not count."""
    file = folder / "progress.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(folder: Path, condition: Callable[[list[dict[str, Any]]], bool], patience_s: float) -> bool:
    """Whether the progress came to fulfil a condition in time."""
    deadline = time.monotonic() + patience_s
    while not (met := condition(progress(folder))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


@contextlib.contextmanager
def ray_nodes(num: int) -> Iterator[Cluster]:
    """A head without CPUs and `num` nodes of one CPU, all on this machine, gone at the end."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(num):
            nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        yield nodes
    finally:
        for node in [*nodes.worker_nodes, nodes.head_node]:
            end_node(node)


if __name__ == "__main__":
    raise SystemExit(main())
