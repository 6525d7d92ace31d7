"""The service's metrics: every name is here, and infra/grafana/oral_ray.json shows them.

Ray exports them to Prometheus as `ray_<name>` (counters as `ray_<name>_total`) on every node's metrics port; GET /metrics
of the service relays that.
"""

from collections.abc import Sequence
from typing import Any

from ray.serve import metrics

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


class IngressMetrics:
    """What the ingress counts; made inside its replica, whose tags they carry."""

    def __init__(self) -> None:
        self.requests = _counter("oral_requests", "HTTP requests", "route", "method", "status")
        self.request_s = _histogram("oral_request_s", "Seconds of an HTTP request in the ingress", _SECONDS, "route")
        self.answers = _counter("oral_answers", "Adapters answered, by where they came from", "source")
        self.jobs = _counter("oral_jobs", "Jobs ended", "status")
        self.open_jobs = _gauge("oral_open_jobs", "Jobs accepted and not ended")
        self.released = _gauge("oral_released", "Adapters of a latest release, by what passed the gate", "base", "arm")


class ReplicaMetrics:
    """What a generator replica counts."""

    def __init__(self) -> None:
        self.tokens = _counter("oral_tokens", "Weight tokens generated")
        self.batch_size = _histogram("oral_batch_size", "Adapters sampled together", _SIZES)
        self.queue_s = _histogram("oral_queue_s", "Seconds between arrival at a replica and sampling", _SECONDS)
        self.sample_s = _histogram("oral_sample_s", "Seconds of sampling a batch", _SECONDS)
        self.store_s = _histogram("oral_store_s", "Seconds of putting an adapter together and storing it", _SECONDS)
        self.swaps = _counter("oral_generator_swaps", "Generators loaded in place of another")


def _counter(name: str, text: str, *tags: str) -> metrics.Counter:
    keys: Any = tags  # Ray's annotation says one tag
    return metrics.Counter(name, text, keys)


def _gauge(name: str, text: str, *tags: str) -> metrics.Gauge:
    keys: Any = tags
    return metrics.Gauge(name, text, keys)


def _histogram(name: str, text: str, bounds: Sequence[float], *tags: str) -> metrics.Histogram:
    keys: Any = tags
    return metrics.Histogram(name, text, list(bounds), keys)
