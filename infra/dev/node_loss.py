"""Lose a worker, a node and the head of a training run that streams its corpus with Ray Data, and see it end all the same.

A cluster of several Ray nodes on this machine (`ray.cluster_utils`): the head has no CPU, every other node has one, and
every training worker takes one, so that after a loss no CPU is left for anybody else. The run is a process of its own,
like a job's driver. What is killed is killed with -9, right after a step that is not a checkpoint's. A row says what was
lost, how many steps were done twice, how long nothing was learnt, and whether the loss curve is that of the run nobody
touched, bit for bit. Checkpoints are uploaded while training goes on: one counts when Ray Train has entered it, so what is
lost is at most an interval and the steps of one upload.

    make node-loss                                          # out/node_loss.json
    python infra/dev/node_loss.py --only node head --out FILE
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000", "RAY_worker_niceness": "0"}

import psutil  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from oral_ray.bench.environment import describe_environment  # noqa: E402
from oral_ray.bench.runs import Job, Shape, build_corpus, run_training  # noqa: E402
from oral_ray.cluster import session  # noqa: E402
from oral_ray.config import ClusterConfig, GeneratorConfig, TrainingConfig  # noqa: E402

STEPS, CHECKPOINT_EVERY, KILL_AFTER = 26, 8, 14  # a pass over the corpus ends at about step 22, then it is read anew
LOST = ("node", "worker", "head", "node, fewer workers")


def main() -> int:
    """Run the scenarios, write and print a row each; 1 when one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "node_loss.json")
    parser.add_argument("--only", choices=LOST, nargs="+", default=LOST)
    parser.add_argument("--patience", type=float, default=180.0, help="seconds without a step that count as hung (180)")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # the driver process
    args = parser.parse_args()
    if args.job:
        return drive(json.loads(args.job))
    report: dict[str, Any] = {"environment": describe_environment(), "checkpoint_every": CHECKPOINT_EVERY, "rows": []}
    with tempfile.TemporaryDirectory(prefix="oral-node-loss-") as name:
        runs = Runs(Path(name), args.patience)
        for lost in ("nothing", *args.only):
            row = runs.row(lost)
            report["rows"].append(row)
            print(json.dumps(row), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row["ok"] for row in report["rows"]) else 1


def drive(job: dict[str, Any]) -> int:
    """What a job's driver does; the cluster is that of RAY_ADDRESS."""
    with session(ClusterConfig(), determinism=True):
        curve = run_training(Job.model_validate(job), "run")
    Path(job["progress"]).with_suffix(".curve").write_text(json.dumps([[row["step"], row["loss"]] for row in curve]))
    return 0


class Runs:
    """The scenarios over one corpus; `_curve` is that of the first run."""

    def __init__(self, work: Path, patience_s: float) -> None:
        self._work, self._patience_s = work, patience_s
        self._curve: list[list[float]] = []

    def row(self, lost: str) -> dict[str, Any]:
        """Run once, kill what `lost` says on the way, and say how it ended."""
        folder = self._work / lost.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        job = self._job(folder, min_workers=1 if "fewer" in lost else None)
        progress = Path(job.progress)
        killed: float | None = None
        code: int | None = None
        with cluster(num_nodes=2 if "fewer" in lost else 3) as nodes, driver(job, nodes, folder) as process:
            if lost != "nothing" and self._wait(progress, process, KILL_AFTER):
                killed = time.time()
                self._kill(lost, steps(progress)[-1]["pid"], nodes)
            if lost != "head":
                code = self._wait(progress, process) and process.returncode
        if lost == "head":  # a head's node takes its driver along
            with cluster(num_nodes=3) as nodes, driver(job, nodes, folder) as process:
                code = self._wait(progress, process) and process.returncode
        return self._judge(lost, folder, code, killed)

    def _job(self, folder: Path, min_workers: int | None) -> Job:
        store = f"file://{folder}/store"
        manifest = build_corpus(store, Shape(hidden=32, layers=2, r=2, token_dim=32), num_rows=96, num_files=4)
        training = TrainingConfig(
            num_workers=2, min_workers=min_workers, steps=STEPS, batch_size=4, validate_every=1, warmup_steps=2,
            checkpoint_every=CHECKPOINT_EVERY, cache_bytes=20_000,
        )  # fmt: skip
        generator = GeneratorConfig(width=32, head_dim=32, num_layers=1, denoiser_width=32, denoiser_blocks=1)
        return Job(
            store=store, shards=manifest.fingerprint, training=training, generator=generator, determinism=True,
            progress=f"{folder}/progress.jsonl", step_s=0.8,
        )  # fmt: skip

    def _wait(self, progress: Path, process: subprocess.Popen[bytes], step: int = STEPS + 1) -> bool | None:
        """True once the driver has ended or a step is done, None when nothing has been done for too long."""
        num, since = 0, time.monotonic()
        while process.poll() is None:
            rows = steps(progress)
            if rows and rows[-1]["step"] >= step:
                break
            if len(rows) > num:
                num, since = len(rows), time.monotonic()
            if time.monotonic() - since > self._patience_s:
                return None
            time.sleep(0.05)
        return True

    def _kill(self, lost: str, pid: int, nodes: Cluster) -> None:
        """The worker of rank 0, its raylet with all that it started, or every process of the cluster."""
        worker = psutil.Process(pid)
        if lost == "worker":
            worker.kill()
        elif lost == "head":
            for node in [nodes.head_node, *nodes.worker_nodes]:
                kill_tree(node)
        else:
            [node] = [node for node in nodes.worker_nodes if raylet(node) == worker.ppid()]
            kill_tree(node)

    def _judge(self, lost: str, folder: Path, code: int | None, killed: float | None) -> dict[str, Any]:
        rows, file = steps(folder / "progress.jsonl"), folder / "progress.curve"
        curve = json.loads(file.read_text()) if file.exists() else []
        if lost == "nothing":
            self._curve = curve
        before = [row for row in rows if killed and row["time"] <= killed]
        after = [row for row in rows if killed and row["time"] > killed]
        again = next((i for i, row in enumerate(after) if row["pid"] != rows[0]["pid"]), None)
        row: dict[str, Any] = {
            "lost": lost,
            "outcome": "hung" if code is None else f"exit code {code}",
            "steps": curve[-1][0] if curve else rows[-1]["step"] if rows else 0,
            "workers": [rows[0]["num_workers"], rows[-1]["num_workers"]] if rows else [],
            "curve_equal": bool(curve) and curve == self._curve,
        }
        if killed and again is not None:
            last = max(row["step"] for row in before + after[:again])
            row |= {
                "resumed_at_step": after[again]["step"] - 1,
                "lost_steps": last - (after[again]["step"] - 1),
                "recovery_s": round(after[again]["time"] - killed, 1),
            }
        same = row["curve_equal"] or "fewer" in lost
        row["ok"] = code == 0 and row["steps"] == STEPS and same and row.get("lost_steps", 0) <= CHECKPOINT_EVERY
        return row


@contextmanager
def cluster(num_nodes: int) -> Iterator[Cluster]:
    """A head without a CPU and `num_nodes` nodes of one."""
    small: dict[str, Any] = {"object_store_memory": 100_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    try:
        for _ in range(num_nodes):
            nodes.add_node(num_cpus=1, **small)
        yield nodes
    finally:
        for node in [*nodes.worker_nodes, nodes.head_node]:
            kill_tree(node)


@contextmanager
def driver(job: Job, nodes: Cluster, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The driver's process; it is gone at the end of the block."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--job", job.model_dump_json()], cwd=ROOT, stdout=log, stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": nodes.address},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def raylet(node: Any) -> int | None:
    """The process id of a node's raylet, None where it is gone."""
    found = node.all_processes.get("raylet", [])
    return found[0].process.pid if found else None


def kill_tree(node: Any) -> None:
    """A machine that goes: all that Ray started for this node and all that those started."""
    pids = [info.process.pid for infos in node.all_processes.values() for info in infos]
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    for process in [*processes, *(child for parent in processes for child in parent.children(recursive=True))]:
        if process.is_running():
            process.kill()


def steps(progress: Path) -> list[dict[str, Any]]:
    """What rank 0 has written so far."""
    lines = progress.read_text().splitlines() if progress.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


if __name__ == "__main__":
    sys.exit(main())
