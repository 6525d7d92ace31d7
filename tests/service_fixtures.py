"""The service in this process: its application over a tiny store with a real (untrained) generator, no Ray cluster."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from oral_ray.config import Config, load_config
from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.generation.condition import Condition
from oral_ray.objects import open_objects
from serve.api import build_api
from serve.broker import Broker
from serve.listings import Listings
from serve.metrics import IngressMetrics
from serve.replica import Sampled, Worker
from serve.schema import GenerateRequest, Made, Problem, lora_of
from serve.security import Guard


class Service:
    """An ingress with one generator replica, called directly."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.worker = Worker(config)
        self.catalog = GeneratorCatalog(config, open_objects(config.store.uri))
        metrics = IngressMetrics()
        self.broker = Broker(config, self.catalog, self.generate, metrics)
        self.api = build_api(
            config, self.broker, Listings(config, self.catalog), Guard(config.serve), metrics, lambda: "ray_oral_x 1\n"
        )

    async def generate(self, condition: Condition) -> Made | Problem:
        """What the deployment does, in batches of one."""
        return (await asyncio.to_thread(self.make, [condition]))[0]

    def make(self, conditions: Sequence[Condition]) -> list[Made | Problem]:
        """One batch, sampled and stored."""
        sampled = self.worker.sample([(condition, time.perf_counter()) for condition in conditions])
        return [self.worker.store(one) if isinstance(one, Sampled) else one for one in sampled]

    def condition(self, **body: Any) -> Condition:
        """What the ingress sends to a replica for the body of a request."""
        request = GenerateRequest.model_validate(body)
        lora = lora_of(request, self.config.lora)
        return self.catalog.condition(request.prompt, request.base_id, request.seed, lora, request.scale)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=self.api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", **options) as client:
            yield client

    def ask(self, talk: Callable[[httpx.AsyncClient], Awaitable[Any]], **options: Any) -> Any:
        """Run a conversation with the service and return what it returns."""

        async def run() -> Any:
            async with self.client(**options) as client:
                return await talk(client)

        return asyncio.run(run())


def open_test_service(place: Path, *overrides: str) -> Service:
    """The service of a place of tests/cli_fixtures.py."""
    return Service(load_config(place / "run.toml", [f"store.uri={place / 'store'}", *overrides]))
