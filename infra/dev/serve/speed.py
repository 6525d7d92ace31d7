"""`make bench-serve`: the service's latency and throughput beside direct calls of the factory, in one run.

python infra/dev/serve/speed.py --store STORE   ->  out/bench/serve.json
    [{mode, clients, p50_s, p95_s, p99_s, throughput_per_s, errors}]

Modes: direct and direct-batched (sample and store, 1 and `clients` orders a call, what a replica does), new-batched and
new-unbatched (an adapter that does not exist yet; serve.batch_size 8 and 1), stored (one that exists). One replica with
one thread each; the modes take turns in several rounds, so that a slow minute of the machine is nobody's own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from running import BASE, ROOT, Running, begin_load, copy_of, end_load, summary, wait_until, write

DIRECT = """
import json, sys, time
from oral_ray.cluster import limit_threads
from oral_ray.config import load_config
from oral_ray.service import open_service
limit_threads(1, False)
config = load_config(sys.argv[1], [f"store.uri={sys.argv[2]}", "determinism=false"])
service, seed = open_service(config), 10**12
for line in sys.stdin:
    batch, seconds = json.loads(line)
    taken, until = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        prompt = "Is it an act, an event or a process?"
        orders = [service.stock.order(prompt, sys.argv[3], seed + i) for i in range(batch)]
        seed += batch
        started = time.perf_counter()
        service.fulfil(orders)
        taken.append(time.perf_counter() - started)
    print(json.dumps(taken), flush=True)
"""
CLIENTS = (1, 4, 16, 64)
BATCHES = (8, 16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="infra/configs/quickstart.toml")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pause", type=Path, help="measure once this file exists: when the machine is one's own")
    args = parser.parse_args()
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    spans: dict[tuple[str, int], float] = defaultdict(float)
    errors: dict[tuple[str, int], int] = defaultdict(int)
    seed = 1000
    with copy_of(args.store) as store:
        service = Running(args.config, store)
        direct = subprocess.Popen(
            [sys.executable, "-c", DIRECT, args.config, str(store), BASE], cwd=ROOT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            one = ("serve.min_replicas=1", "serve.max_replicas=1", "serve.max_queued_requests=256")
            service.deploy(*one, "serve.batch_size=8")
            service.deploy(*one, "serve.batch_size=1", name="unbatched")
            print("services are up", flush=True)
            if args.pause:
                wait_until(args.pause.exists, 1200)
            for prefix in ("", "/unbatched"):  # warm, and what `stored` asks for
                end_load(begin_load(service.port, 4, 0, fresh=False, seconds=4, prefix=prefix))
            _direct(direct, 1, 1.0)

            for _ in range(args.rounds):
                for batch in (1, *BATCHES):
                    key = ("direct" if batch == 1 else "direct-batched", batch)
                    found = _direct(direct, batch, args.seconds)
                    taken[key] += found
                    spans[key] += sum(found)
                for mode, prefix, fresh in (
                    ("new-batched", "", True), ("new-unbatched", "/unbatched", True), ("stored", "", False)
                ):  # fmt: skip
                    for clients in CLIENTS:
                        seed += 10**6
                        rows = end_load(begin_load(
                            service.port, clients, seed if fresh else 0, fresh=fresh, seconds=args.seconds, prefix=prefix
                        ))["rows"]  # fmt: skip
                        key = (mode, clients)
                        good = [row for row in rows if row[2] == 200]
                        taken[key] += [row[1] for row in good]
                        errors[key] += len(rows) - len(good)
                        spans[key] += max(row[0] + row[1] for row in rows) - min(row[0] for row in rows)
                time.sleep(0.5)
        finally:
            direct.stdin.close()
            service.stop()
    rows = []
    for (mode, clients), seconds in taken.items():
        made = len(seconds) * (clients if mode == "direct-batched" else 1)
        rows.append({
            "mode": mode, "clients": clients, **summary(seconds),
            "throughput_per_s": round(made / spans[mode, clients], 2), "errors": errors[mode, clients],
        })  # fmt: skip
        print(rows[-1])
    write("serve.json", rows)


def _direct(process: subprocess.Popen, batch: int, seconds: float) -> list[float]:
    process.stdin.write(json.dumps([batch, seconds]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


if __name__ == "__main__":
    main()
