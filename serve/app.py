"""The generation service on Ray Serve: an ingress that takes requests, replicas with a generator that answer them.

    serve run serve.app:build_app config=quickstart store.uri=./oral-store
    curl -s localhost:8000/v1/adapters -H 'content-type: application/json' \\
         -d '{"prompt": "Classify a dictionary definition.", "base": "minilm-l6-t3", "seed": 0}'

The ingress loads no weights and answers what is stored by itself; replicas sample concurrent requests as one batch and
scale between `serve.min_replicas` (0 is possible) and `serve.max_replicas`. docs/service.md has the whole contract.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.concurrency import run_in_threadpool

from oral_ray.cluster.metrics import scrape_metrics
from oral_ray.config import DEFAULT_CONFIG, Config, load_config
from oral_ray.config.place import with_absolute_store
from oral_ray.errors import OralError
from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.objects import open_objects
from oral_ray.pipeline.own_tasks import resolve_tasks
from serve.api import build_api
from serve.broker import Broker
from serve.listings import Listings
from serve.metrics import IngressMetrics
from serve.replica import Replica
from serve.security import Guard, refuse_open_bind

logger = logging.getLogger("ray.serve.oral")
FAST = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
}
"""Serve's settings of the ingress process: nothing here blocks its loop, so a request need not go from thread to thread."""


def build_app(config: Config | Mapping[str, str]) -> serve.Application:
    """The Serve application of a configuration.

    `serve run` passes its `key=value` arguments as a mapping: `config` is a path or a shipped name, the others override it.
    """
    if not isinstance(config, Config):
        overrides = [f"{key}={value}" for key, value in config.items() if key != "config"]
        config = load_config(config.get("config", DEFAULT_CONFIG), overrides)
    config = with_absolute_store(config)
    try:
        config = resolve_tasks(config, open_objects(config.store))
    except OralError as error:  # it serves without them; only the list of tasks is shorter
        logger.warning("/v1/tasks leaves out tasks of one's own: %s", error)
    settings, logs = config.serve, LoggingConfig(encoding="JSON", enable_access_log=False)
    deployed: Any = serve.deployment(
        Replica,
        name="generator",
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        max_ongoing_requests=4 * settings.batch_size,  # one batch is sampled, one stored, the next ones wait
        # Serve's router, which looks for room by itself, would look away for up to half a second: longer than a batch takes
        request_router_config={"initial_backoff_s": 0.005, "max_backoff_s": 0.04},
        max_queued_requests=settings.max_queued_requests,
        health_check_period_s=max(1.0, settings.refresh_s),
        graceful_shutdown_timeout_s=settings.drain_s,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 2.0,
        },
        logging_config=logs,
    )
    fronted: Any = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=settings.ingress_replicas,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": FAST}},
        max_ongoing_requests=10_000,  # it refuses by itself, with a Problem
        health_check_period_s=max(1.0, settings.refresh_s),
        graceful_shutdown_timeout_s=settings.drain_s,
        logging_config=logs,
    )
    return fronted.bind(config, deployed.bind(config))


class Ingress:
    """The deployment that speaks HTTP."""

    def __init__(self, config: Config, generator: DeploymentHandle) -> None:
        self._config = config
        self._guard = Guard(config.serve)
        refuse_open_bind(self._guard, _http_host())
        self._metrics = IngressMetrics()
        catalog = GeneratorCatalog(config, open_objects(config.store))
        self._broker = Broker(config, catalog, lambda condition: generator.generate.remote(condition), self._metrics)
        self._listings = Listings(config, catalog)
        self._resumed: asyncio.Task[None] | None = None
        self._leave_s = 0.0

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, once this replica is made."""
        return build_api(self._config, self._broker, self._listings, self._guard, self._metrics, scrape_metrics)

    async def check_health(self) -> None:
        """Called by Serve every few seconds: goes on with the jobs of ingresses that have died, and counts releases.

        A new ingress takes every open job, for it may be there in the place of one that died. Later on a job is left to
        the ingress that accepted it as long as an answer may take.
        """
        if self._resumed is None or self._resumed.done():
            self._resumed = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        try:
            num_jobs = await self._broker.resume(self._leave_s)
            self._leave_s = self._config.serve.max_wait_s
            if num_jobs:
                logger.info("went on with %d jobs", num_jobs)
            self._broker.count_open_jobs()
            releases = (await run_in_threadpool(self._listings.releases, "")).items
            released = Counter((release.base_id, adapter.arm) for release in releases for adapter in release.adapters)
            for (base_id, arm), num in released.items():
                self._metrics.released.set(num, {"base": base_id, "arm": arm})
        except OralError as error:
            logger.warning("jobs and releases are not looked after at the moment: %s", error)


def _http_host() -> str:
    """The address that Serve's proxies listen on."""
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    options: Any = ray.get(controller.get_http_config.remote())
    return str(options.host)
