"""`make bench-serve`: the service's latency and throughput beside direct calls of the factory, in one run.

python infra/dev/serve/speed.py --store STORE   ->  out/bench/serve.json, serve_ratios.json
    [{mode, clients, p50_s, p95_s, p99_s, throughput_per_s, errors}], and one object of ratios for each of `--runs`

Modes: direct and direct-batched (sample and store, 1 and `clients` conditions a call, what a replica does), new-batched and
new-unbatched (an adapter that does not exist yet; serve.batch_size 8 and 1), stored (one that exists). One replica with
one thread each; within a run the modes take turns in several rounds, so that a slow minute of the machine is nobody's
own. serve.json is of all runs together.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from running import BASE, ROOT, Running, begin_load, copy_of, end_load, summary, write

DIRECT = """
import json, sys, time
from oral_ray.cluster import limit_threads
from oral_ray.config import load_config
from oral_ray.generation.service import open_service
from load import wording
limit_threads(1, False)
config = load_config(sys.argv[1], [f"store.uri={sys.argv[2]}", "determinism=false"])
service, seed = open_service(config), 10**12
for line in sys.stdin:
    batch, seconds = json.loads(line)
    taken, until = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        asked = range(seed, seed + batch)
        conditions = [service.catalog.condition(wording(number), sys.argv[3], number) for number in asked]
        seed += batch
        started = time.perf_counter()
        service.generate(conditions)
        taken.append(time.perf_counter() - started)
    print(json.dumps(taken), flush=True)
"""
CLIENTS = (1, 4, 16, 64)
BATCHES = (8, 16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    runs = []
    with copy_of(args.store) as store:
        service = Running(args.config, store)
        direct = subprocess.Popen(
            [sys.executable, "-c", DIRECT, args.config, str(store), BASE], cwd=ROOT, text=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            one = ("serve.min_replicas=1", "serve.max_replicas=1", "serve.max_queued_requests=256", "serve.refresh_s=5")
            service.deploy(*one, "serve.batch_size=8")
            service.deploy(*one, "serve.batch_size=1", name="unbatched")
            print("services are up", flush=True)
            for prefix in ("", "/unbatched"):  # warm, and what `stored` asks for
                end_load(begin_load(service.port, 4, 0, fresh=False, seconds=4, prefix=prefix))
            _direct(direct, 1, 1.0)
            for number in range(args.runs):
                runs.append(Seen())
                for turn in range(args.rounds):
                    measure(runs[-1], service, direct, args.seconds, (1 + number * args.rounds + turn) * 10**9)
                print(json.dumps(ratios(runs[-1])), flush=True)
        finally:
            direct.stdin.close()
            service.stop()
    together = Seen()
    for run in runs:
        together.add(run)
    for row in together.rows():
        print(row)
    write("serve.json", together.rows())
    write("serve_ratios.json", [ratios(run) for run in runs])


class Seen:
    """What was measured, by (mode, clients)."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.spans: dict[tuple[str, int], float] = defaultdict(float)
        self.errors: dict[tuple[str, int], int] = defaultdict(int)
        self.load_cpu_s: dict[tuple[str, int], float] = defaultdict(float)

    def add(self, other: "Seen") -> None:
        for name in vars(self):
            mine, more = getattr(self, name), getattr(other, name)
            for key, value in more.items():
                mine[key] = mine[key] + value

    def throughput(self, mode: str, clients: int) -> float:
        made = len(self.taken[mode, clients]) * (clients if mode == "direct-batched" else 1)
        return made / self.spans[mode, clients]

    def rows(self) -> list[dict]:
        return [
            {
                "mode": mode, "clients": clients, **summary(seconds),
                "throughput_per_s": round(self.throughput(mode, clients), 2), "errors": self.errors[mode, clients],
            }
            for (mode, clients), seconds in self.taken.items()
        ]  # fmt: skip


def measure(seen: Seen, service: Running, direct: subprocess.Popen, seconds: float, seed: int) -> None:
    """One turn of every mode."""
    for batch in (1, *BATCHES):
        key = ("direct" if batch == 1 else "direct-batched", batch)
        found = _direct(direct, batch, seconds)
        seen.taken[key] += found
        seen.spans[key] += sum(found)
    for mode, prefix, fresh in (
        ("new-batched", "", True),
        ("new-unbatched", "/unbatched", True),
        ("stored", "", False),
    ):
        for clients in CLIENTS:
            seed += 10**6
            told = end_load(begin_load(
                service.port, clients, seed if fresh else 0, fresh=fresh, seconds=seconds, prefix=prefix
            ))  # fmt: skip
            key, good = (mode, clients), [row for row in told["rows"] if row[2] == 200]
            seen.taken[key] += [row[1] for row in good]
            seen.errors[key] += len(told["rows"]) - len(good)
            seen.spans[key] += max(row[0] + row[1] for row in told["rows"]) - min(row[0] for row in told["rows"])
            seen.load_cpu_s[key] += told["cpu_s"]


def ratios(seen: Seen) -> dict[str, float]:
    """What the service is judged by."""
    rows = {(row["mode"], row["clients"]): row for row in seen.rows()}
    batched = seen.throughput("new-batched", 16)
    found = {
        "overhead_ms": 1000 * (rows["new-batched", 1]["p50_s"] - rows["direct", 1]["p50_s"]),
        "batched_over_unbatched": batched / seen.throughput("new-unbatched", 16),
        "batched_over_direct_batched": batched / seen.throughput("direct-batched", 16),
        "direct_batched_over_direct": seen.throughput("direct-batched", 16) / seen.throughput("direct", 1),
        "clients_64_over_16": seen.throughput("new-batched", 64) / batched,
        "stored_per_s": seen.throughput("stored", 16),
        "stored_p99_s": rows["stored", 16]["p99_s"],
        "load_cpu_frac": seen.load_cpu_s["stored", 16] / seen.spans["stored", 16],
        "errors": sum(seen.errors.values()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _direct(process: subprocess.Popen, batch: int, seconds: float) -> list[float]:
    process.stdin.write(json.dumps([batch, seconds]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


if __name__ == "__main__":
    main()
