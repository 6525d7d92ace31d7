"""`make bench-serve`: the service's latency and throughput beside direct calls of the factory, in one run.

python infra/dev/serve/speed.py --store STORE   ->  out/bench/serve.json
    [{mode, clients, p50_s, p95_s, p99_s, throughput_per_s, errors}]

Modes: direct (one order a call), direct-batched (8 a call), new-batched and new-unbatched (an adapter that does not exist
yet, replicas with serve.batch_size 8 and 1), stored (one that exists). One replica with one thread throughout. `direct`
does what a replica does: sample and store.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from running import BASE, ROOT, Running, begin_load, copy_of, end_load, summary, write

DIRECT = """
import json, sys, time
from oral_ray.cluster import limit_threads
from oral_ray.config import load_config
from oral_ray.service import open_service
limit_threads(1, False)
config = load_config(sys.argv[1], [f"store.uri={sys.argv[2]}", "determinism=false"])
service, base, seconds = open_service(config), sys.argv[3], float(sys.argv[4])
rows, seed = [], 10**12
for batch in (1, 8, 16):
    taken, until = [], 0.0
    for repetition in range(10**6):
        orders = [service.stock.order("Is it an act, an event or a process?", base, seed + i) for i in range(batch)]
        seed += batch
        started = time.perf_counter()
        service.fulfil(orders)
        if repetition == 1:
            until = started + seconds
        if repetition:
            taken.append(time.perf_counter() - started)
        if repetition > 1 and time.perf_counter() > until:
            break
    rows.append([batch, taken])
json.dump(rows, sys.stdout)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="infra/configs/quickstart.toml")
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args()
    rows = []
    with copy_of(args.store) as store:
        service = Running(args.config, store)
        try:
            one = ("serve.min_replicas=1", "serve.max_replicas=1", "serve.max_queued_requests=256")
            seed = 1000
            for mode, size in (("new-batched", 8), ("new-unbatched", 1)):
                service.deploy(*one, f"serve.batch_size={size}")
                end_load(begin_load(service.port, 4, first_seed=0, fresh=False, seconds=3))  # warm, and what is stored
                for clients in (1, 4, 16, 64):
                    seed += 10**6
                    rows.append(measure(service, mode, clients, seed, args.seconds))
                if mode == "new-batched":
                    rows += [measure(service, "stored", n, 0, args.seconds, fresh=False) for n in (1, 4, 16, 64)]
        finally:
            service.stop()
        done = subprocess.run(
            [sys.executable, "-c", DIRECT, args.config, str(store), BASE, str(args.seconds)], cwd=ROOT,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    import json

    for batch, taken in json.loads(done.stdout):
        mode = "direct" if batch == 1 else f"direct-batched-{batch}"
        rate = round(batch * len(taken) / sum(taken), 2)
        rows.append({"mode": mode, "clients": batch, **summary(taken), "throughput_per_s": rate, "errors": 0})
    write("serve.json", rows)
    for row in rows:
        print(row)


def measure(service: Running, mode: str, clients: int, seed: int, seconds: float, fresh: bool = True) -> dict:
    seen = end_load(begin_load(service.port, clients, seed, fresh=fresh, seconds=seconds))["rows"]
    good = [row for row in seen if row[2] == 200]
    span_s = max(row[0] + row[1] for row in seen) - min(row[0] for row in seen)
    return {
        "mode": mode, "clients": clients, **summary([row[1] for row in good]),
        "throughput_per_s": round(len(good) / span_s, 2), "errors": len(seen) - len(good),
    }  # fmt: skip


if __name__ == "__main__":
    main()
