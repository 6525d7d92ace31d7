"""`make serve-soak`: ten thousand requests at concurrency 32; does the memory of ingress and replica stay?

python infra/dev/serve/soak.py --store STORE   ->  out/bench/serve_soak.json
    {requests, clients, new_frac, errors, rows: [{requests, ingress_mb, generator_mb}], growth_frac: {...}}

One request in ten is for a new adapter. `growth_frac` compares the level at the end with that after the first thousand.
"""

import argparse
from pathlib import Path

import psutil
from running import Running, begin_load, copy_of, end_load, write


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    rows, errors, made, done = [], 0, 0, 0
    with copy_of(args.store) as store:
        service = Running(args.config, store)
        try:
            service.deploy("serve.min_replicas=1", "serve.max_replicas=1", "serve.max_queued_requests=256")
            while done < args.requests:
                fresh = begin_load(service.port, 3, first_seed=10**9 + done, requests=100)
                seen = [
                    *end_load(begin_load(service.port, 29, 0, fresh=False, requests=900))["rows"],
                    *end_load(fresh)["rows"],
                ]
                done, errors = done + len(seen), errors + sum(row[2] != 200 for row in seen)
                made += 100
                rows.append(
                    {
                        "requests": done,
                        "ingress_mb": megabytes(service, "ingress"),
                        "generator_mb": megabytes(service, "generator"),
                    }
                )
                print(rows[-1], flush=True)
        finally:
            service.stop()
    growth = {name: round(rows[-1][name] / rows[0][name] - 1, 4) for name in ("ingress_mb", "generator_mb")}
    write(
        "serve_soak.json",
        {
            "requests": done,
            "clients": 32,
            "new_frac": made / done,
            "errors": errors,
            "growth_frac": growth,
            "rows": rows,
        },
    )
    print(growth, errors)


def megabytes(service: Running, name: str) -> float:
    """What a deployment's processes hold for themselves."""
    return round(sum(psutil.Process(pid).memory_full_info().uss for pid in service.pids(name)) / 1e6, 1)


if __name__ == "__main__":
    main()
