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
from typing import Any, TypeVar

import pandas as pd
import psutil

from oral_ray.config import Config
from oral_ray.evaluation.evaluate import check_evaluation, evaluate_arms
from oral_ray.evaluation.report.page import write_report
from oral_ray.evaluation.report.tables import arms_text, read_table
from oral_ray.nightly.regenerate import regenerate
from oral_ray.objects import probe
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.corpus import train_corpus
from oral_ray.pipeline.run import begin_run
from oral_ray.pipeline.shards import write_shards
from oral_ray.pipeline.walk import train_current, train_seeds

_R = TypeVar("_R")


def run_quickstart(config: Config) -> str:
    """Run everything and return the table of arms as text."""
    wall_s: dict[str, float] = {}
    memory = PeakMemory()

    def timed(name: str, stage: Callable[..., _R], *arguments: Any) -> _R:
        started = time.perf_counter()
        result = stage(*arguments)
        wall_s[name] = time.perf_counter() - started
        return result

    check_evaluation(config)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    run = begin_run(config)
    config = run.config
    probe(run.objects)
    started = time.perf_counter()
    with run.session():
        run = timed("bases", resolve_bases, run)
        corpus = timed("corpus", train_corpus, run)
        manifest = timed("shards", write_shards, run, corpus)
        trained = timed("train", train_current, run, corpus, manifest)
        timed("evaluate", lambda: evaluate_arms(trained, train_seeds(trained)))
        regenerated = timed("regenerate", regenerate, trained)
    wall_s["total"] = time.perf_counter() - started
    out = Path(config.out)
    pd.DataFrame(run.training_log(trained.recipe)).to_parquet(out / "metrics.parquet")
    summary = {
        "command": shlex.join(sys.argv),
        "published": list(regenerated.published),
        "wall_s": wall_s,
        "peak_rss_bytes": memory.stop(),
        "generator": trained.recipe,
        "num_bootstrap": config.evaluation.num_bootstrap,
        "config": config.model_dump(mode="json"),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    report = write_report(out)
    lines = [arms_text(read_table(out, "arms")), ""]
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
        process, is_done = psutil.Process(os.getpid()), False
        while not is_done:
            is_done = self._done.wait(1.0)  # and once more at the end: a finished run takes less than a second
            total = 0
            for member in (process, *process.children(recursive=True)):
                try:
                    total += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._peak = max(self._peak, total)
