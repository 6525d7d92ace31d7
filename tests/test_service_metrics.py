"""Every panel of the dashboard shows a metric that the code makes, and every metric that it makes is shown."""

import json
import re
from pathlib import Path

from ray.serve import metrics

from serve.metrics import IngressMetrics, ReplicaMetrics

ROOT = Path(__file__).parents[1]
SUFFIXES = {metrics.Counter: ("_total",), metrics.Gauge: ("",), metrics.Histogram: ("_bucket", "_sum", "_count")}


def exported() -> dict[str, set[str]]:
    """By metric: the names that Prometheus knows it by."""
    made = [*vars(IngressMetrics()).values(), *vars(ReplicaMetrics()).values()]
    return {
        metric.info["name"]: {f"ray_{metric.info['name']}{end}" for end in SUFFIXES[type(metric)]} for metric in made
    }


def shown() -> set[str]:
    dashboard = json.loads((ROOT / "infra/grafana/oral_ray.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert all(panel["targets"] for panel in dashboard["panels"]) and len(expressions) > 10
    return {name for text in expressions for name in re.findall(r"\bray_oral_\w+", text)}


def test_every_panel_shows_a_metric_that_the_code_makes():
    assert shown() - set().union(*exported().values()) == set()


def test_every_metric_of_the_code_has_a_panel():
    assert [name for name, names in exported().items() if not names & shown()] == []
