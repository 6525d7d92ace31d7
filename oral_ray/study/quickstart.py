"""All stages in a row on one configuration, then the table of arms and the report.

Writes the store and, in `out`: scores.parquet, summary.json, report.html and the tables of the evaluation.

    print(run_quickstart(load_config("quickstart")))
"""

import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from oral_ray.cluster import session
from oral_ray.config import Config
from oral_ray.evaluation import evaluate
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import arm_table, arms_text
from oral_ray.nightly import regenerate
from oral_ray.objects import open_objects, probe
from oral_ray.pipeline import bases, corpus, shards, train
from oral_ray.pipeline.own_tasks import enter_tasks
from oral_ray.store.generators import read_metrics


def run_quickstart(config: Config) -> str:
    """Run everything and return the table of arms as text."""
    wall_s: dict[str, float] = {}
    memory = PeakMemory()

    def timed(stage: str, run: Callable[[Config], Any]) -> Any:
        started = time.perf_counter()
        result = run(config)
        wall_s[stage] = time.perf_counter() - started
        return result

    evaluate.check_evaluation(config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    probe(open_objects(config.store))
    config = enter_tasks(config)
    started = time.perf_counter()
    with session(config.cluster, config.determinism):
        wall_s["start ray"] = time.perf_counter() - started
        timed("bases", bases.run)
        timed("corpus", corpus.run)
        timed("shards", shards.run)
        recipe = timed("train", train.run)
        timed("evaluate", evaluate.run)
        regenerated = timed("regenerate", regenerate.run)
    wall_s["total"] = time.perf_counter() - started
    out = Path(config.out)
    pd.DataFrame(read_metrics(open_objects(config.store), recipe)).to_parquet(out / "metrics.parquet")
    summary = {
        "command": shlex.join(sys.argv),
        "published": list(regenerated.published),
        "wall_s": wall_s,
        "peak_rss_bytes": memory.stop(),
        "generator": recipe,
        "num_bootstrap": config.evaluation.num_bootstrap,
        "config": config.model_dump(mode="json"),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    report = write_report(out)
    lines = [arms_text(arm_table(out, config.evaluation.num_bootstrap)), ""]
    lines += [
        f"published {item['base']} / {item['task']} ({item['arm']}): {item['uri']}" for item in summary["published"]
    ]
    lines += [
        f"nothing published for {outcome.base} / {outcome.task}: {outcome.decision.reason}"
        for outcome in regenerated.outcomes
        if outcome.decision.arm is None
    ]
    lines += [f"failed {item.base} / {item.task}: {item.reason}" for item in regenerated.failed]
    lines += [f"report: {report}", f"{wall_s['total']:.0f} s, peak memory {summary['peak_rss_bytes'] / 1e9:.1f} GB"]
    return "\n".join(lines)


class PeakMemory:
    """The largest sum of resident memory of this process and its children, looked at once a second."""

    def __init__(self) -> None:
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End watching and return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        process = psutil.Process(os.getpid())
        while not self._done.wait(1.0):
            total = 0
            for member in (process, *process.children(recursive=True)):
                try:
                    total += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._peak = max(self._peak, total)
