"""The metrics that Ray's nodes export."""

import logging
import urllib.request

import ray

logger = logging.getLogger(__name__)


def scrape_metrics(prefix: str = "ray_oral_") -> str:
    """What the nodes of the cluster tell Prometheus about metrics of a name prefix."""
    lines = []
    for node in ray.nodes():
        if node["Alive"] and node.get("MetricsExportPort"):
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    lines += [line for line in answer.read().decode().splitlines() if prefix in line]
            except OSError as error:
                logger.warning("node %s tells no metrics: %s", node["NodeManagerAddress"], error)
    return "".join(f"{line}\n" for line in lines)
