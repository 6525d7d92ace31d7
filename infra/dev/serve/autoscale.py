"""`make serve-autoscale`: a ramp of load, the replicas that answer it, back to none, and a cold start from none.

python infra/dev/serve/autoscale.py --store STORE   ->  docs/results/serve/autoscale.json, .png
"""

import argparse
import json
import threading
import time
from collections import Counter
from pathlib import Path

import matplotlib
from running import ROOT, Running, begin_load, copy_of, end_load, summary, wait_until

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RAMP = ((1, 12), (8, 25), (24, 40), (4, 15))  # (clients, seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="infra/configs/quickstart.toml")
    args = parser.parse_args()
    samples: list[list[float]] = []
    with copy_of(args.store) as store:
        service = Running(args.config, store)
        try:
            service.deploy(
                "serve.min_replicas=0", "serve.max_replicas=3", "serve.cpus_per_replica=0.5", "serve.upscale_delay_s=2",
                "serve.downscale_delay_s=10", "serve.target_ongoing_requests=4", "serve.max_queued_requests=64",
            )  # fmt: skip
            wait_until(lambda: not service.pids("generator"), 90)
            begun = time.time()
            stop = threading.Event()
            waiting = {"clients": 0}

            def watch() -> None:
                while not stop.wait(0.5):
                    samples.append([round(time.time() - begun, 2), len(service.pids("generator")), waiting["clients"]])

            watcher = threading.Thread(target=watch)
            watcher.start()
            rows, cold_s = [], None
            for number, (clients, seconds) in enumerate(RAMP, 1):
                waiting["clients"] = clients
                seen = end_load(begin_load(service.port, clients, 10**8 * number, seconds=seconds))["rows"]
                rows += seen
                cold_s = cold_s or seen[0][1]
            waiting["clients"] = 0
            to_zero_s = wait_until(lambda: not service.pids("generator"), 90)
            time.sleep(3)
            again = end_load(begin_load(service.port, 1, 10**10, requests=1))["rows"][0]
            time.sleep(1)
            stop.set()
            watcher.join()
        finally:
            service.stop()
    statuses = Counter("ok" if row[2] in (200, 202) else "503 with Retry-After" if row[3].endswith("; retry") else "failed"
                       for row in rows)  # fmt: skip
    told = {
        "ramp": RAMP, "requests": len(rows), **statuses, **summary([row[1] for row in rows if row[2] == 200]),
        "cold_start_s": round(cold_s, 2), "cold_start_again_s": round(again[1], 2), "to_zero_s": round(to_zero_s, 1),
        "most_replicas": max(sample[1] for sample in samples), "samples": samples,
    }  # fmt: skip
    folder = ROOT / "docs/results/serve"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "autoscale.json").write_text(json.dumps(told, indent=1) + "\n")
    plot(told, rows, begun, folder / "autoscale.png")
    print({name: value for name, value in told.items() if name != "samples"})


def plot(told: dict, rows: list, begun: float, path: Path) -> None:
    times, replicas, clients = zip(*told["samples"], strict=True)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True)
    top.step(times, replicas, where="post", label="replica processes", color="#1f77b4")
    top.set_ylabel("replicas")
    load = top.twinx()
    load.step(times, clients, where="post", color="#888888", linestyle=":", label="clients (queue and work)")
    load.set_ylabel("clients")
    top.legend(loc="upper left")
    load.legend(loc="upper right")
    good = [row for row in rows if row[2] in (200, 202)]
    bottom.scatter([row[0] - begun for row in good], [row[1] for row in good], s=4, color="#2ca02c", label="answered")
    bad = [row for row in rows if row[2] not in (200, 202)]
    bottom.scatter(
        [row[0] - begun for row in bad], [row[1] for row in bad], s=8, color="#d62728", label="503, Retry-After"
    )
    bottom.set_yscale("log")
    bottom.set_ylabel("seconds a request")
    bottom.set_xlabel("seconds; made by `make serve-autoscale`")
    bottom.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
