"""`make serve-autoscale`: a ramp of load, the replicas that answer it, back to none, and a cold start from none.

python infra/dev/serve/autoscale.py --store STORE   ->  out/bench/serve_autoscale.json, .png
    {ramp, requests, ok, unavailable, failed, p50_s, p95_s, p99_s, cold_start_s, cold_start_again_s, to_zero_s,
     most_replicas, samples: [[second, replica processes, clients, requests on their way]]}

Every client of the ramp asks for new adapters, one after the other. `unavailable` are 503 with Retry-After, `failed` is
anything else that is no answer. A cold start is what the first request waits while there is no replica.
"""

import argparse
import json
import threading
import time
from collections import Counter
from pathlib import Path

import matplotlib
from running import FOLDERS, Running, begin_load, copy_of, end_load, summary, wait_until, write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RAMP = ((1, 20), (8, 30), (24, 40), (64, 30), (192, 20), (4, 15))  # (clients, seconds); 192 are more than fit
SETTINGS = (
    "serve.min_replicas=0", "serve.max_replicas=3", "serve.cpus_per_replica=0.5", "serve.upscale_delay_s=2",
    "serve.downscale_delay_s=10", "serve.target_ongoing_requests=4", "serve.max_queued_requests=16",
)  # fmt: skip
NAME = "serve_autoscale"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="quickstart")
    args = parser.parse_args()
    with copy_of(args.store) as store:
        service = Running(args.config, store)
        try:
            service.deploy(*SETTINGS)
            wait_until(lambda: not service.pids("generator"), 90)
            told, answers = measure(service)
        finally:
            service.stop()
    write(f"{NAME}.json", told)
    for folder in FOLDERS:
        plot(told, answers, folder / f"{NAME}.png")
    print(json.dumps({name: value for name, value in told.items() if name != "samples"}))


def measure(service: Running) -> tuple[dict, list]:
    """The ramp from no replica, the way back to none, and one request more: what to tell, and [second, seconds, kind]."""
    watched: list[tuple[float, int, int]] = []
    clients_now, stop, begun = 0, threading.Event(), time.time()

    def watch() -> None:
        while not stop.wait(0.5):
            watched.append((time.time(), len(service.pids("generator")), clients_now))

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = []
    for number, (clients, seconds) in enumerate(RAMP, 1):
        clients_now = clients
        rows += end_load(begin_load(service.port, clients, 10**8 * number, seconds=seconds))["rows"]
    clients_now = 0
    to_zero_s = wait_until(lambda: not service.pids("generator"), 120)
    time.sleep(3)
    again = end_load(begin_load(service.port, 1, 10**10, requests=1))["rows"]
    time.sleep(1)
    stop.set()
    watcher.join()
    kinds = Counter(kind_of(row) for row in rows)
    told = {
        "ramp": RAMP, "settings": SETTINGS, "requests": len(rows),
        **{kind: kinds[kind] for kind in ("ok", "unavailable", "failed")},
        **summary([row[1] for row in rows if kind_of(row) == "ok"]),
        "cold_start_s": round(rows[0][1], 2), "cold_start_again_s": round(again[0][1], 2),
        "to_zero_s": round(to_zero_s, 1), "most_replicas": max(replicas for _, replicas, _ in watched),
        "samples": [
            [round(at - begun, 2), replicas, clients, sum(row[0] <= at < row[0] + row[1] for row in rows + again)]
            for at, replicas, clients in watched
        ],
    }  # fmt: skip
    return told, [[row[0] - begun, row[1], kind_of(row)] for row in rows + again]


def kind_of(row: list) -> str:
    _, _, status, kind = row
    if status in (200, 202):
        return "ok"
    return "unavailable" if status == 503 and kind.endswith("; retry") else "failed"


def plot(told: dict, answers: list, path: Path) -> None:
    times, replicas, clients, under_way = zip(*told["samples"], strict=True)
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(8, 7), sharex=True)
    top.step(times, replicas, where="post", color="#1f77b4")
    top.set_ylabel("replica processes")
    middle.step(times, clients, where="post", color="#888888", linestyle=":", label="clients")
    middle.step(times, under_way, where="post", color="#9467bd", label="requests on their way (queue and work)")
    middle.set_yscale("symlog", linthresh=1)
    middle.legend(loc="upper left")
    for kind, color, label in (
        ("ok", "#2ca02c", "answered"), ("unavailable", "#ff7f0e", "503, Retry-After"), ("failed", "#d62728", "failed"),
    ):  # fmt: skip
        points = [(at, seconds) for at, seconds, found in answers if found == kind]
        bottom.scatter(
            *(zip(*points, strict=True) if points else ((), ())), s=5, color=color, label=f"{label}: {len(points)}"
        )
    bottom.set_yscale("log")
    bottom.set_ylabel("seconds a request")
    bottom.set_xlabel("seconds; made by `make serve-autoscale`")
    bottom.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
