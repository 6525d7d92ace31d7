"""A generator replica: a loaded generator that answers requests in batches, and follows the current generator.

Conditions with different bases, ranks and prompts are sampled together (the factory pads by token count, every adapter
draws from its own stream). What cannot be made comes back as a Problem, so that it fails no other of its batch.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.cluster import device_of, limit_threads
from oral_ray.config import Config
from oral_ray.errors import OralError
from oral_ray.generation.condition import Condition
from oral_ray.generation.service import GenerationService, open_service
from oral_ray.objects import FileObjects
from serve.batcher import Batcher
from serve.metrics import ReplicaMetrics
from serve.problems import describe
from serve.schema import AdapterInfo, Made, Problem

logger = logging.getLogger("ray.serve.oral")
SWITCH_S = 0.0005
"""How long a thread keeps Python's lock while another waits. The sampler gives it back at every operator and, beside the
thread that stores, would wait Python's default of 5 ms to have it again (measured: docs/service.md)."""
Asked = tuple[Condition, float]
"""What is asked for, and when it came (time.perf_counter)."""


class Replica:
    """The deployment: gathers conditions into batches, and follows the current generator."""

    def __init__(self, config: Config) -> None:
        limit_threads(max(1, int(config.serve.cpus_per_replica)), config.determinism)
        sys.setswitchinterval(SWITCH_S)
        self._worker = Worker(config)
        self._sample = Batcher(self._worker.sample, config.serve.batch_size, config.serve.batch_wait_s)
        self._store_threads = ThreadPoolExecutor(self._worker.num_store_threads, "store")
        self._swap: asyncio.Task[None] | None = None

    async def generate(self, condition: Condition) -> Made | Problem:
        """Generate an adapter and store it. While it is put together and stored the next batch is sampled."""
        sampled = await self._sample((condition, time.perf_counter()))
        if not isinstance(sampled, Sampled):
            return sampled
        return await asyncio.get_running_loop().run_in_executor(self._store_threads, self._worker.store, sampled)

    async def check_health(self) -> None:
        """Called by Serve every few seconds: begin to load the current generator when it is another one."""
        if self._swap is None or self._swap.done():
            self._swap = asyncio.create_task(asyncio.to_thread(self._worker.follow))


@dataclass(frozen=True, slots=True)
class Sampled:
    """An adapter that is not stored yet, what asked for it, the service that sampled it, and where the time went."""

    condition: Condition
    adapter: SampledAdapter
    service: GenerationService
    batch_size: int
    queue_s: float
    sample_s: float


class Worker:
    """A loaded generator that answers batches of conditions; plain and blocking."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._device = device_of(config.serve.gpus_per_replica)
        self._service: GenerationService = open_service(config, self._device)
        self._metrics = ReplicaMetrics()

    @property
    def recipe(self) -> str:
        """The recipe of the generator in use."""
        return self._service.recipe

    @property
    def num_store_threads(self) -> int:
        """How many adapters are stored at once: one in a folder, where Python is at work and takes turns with sampling."""
        objects = self._service.catalog.objects
        return 1 if isinstance(objects, FileObjects) else objects.concurrency

    def sample(self, asked: Sequence[Asked]) -> list[Sampled | Made | Problem]:
        """One adapter per condition, in order, all of one generator; what cannot be made is a Problem.

        An adapter that is sampled while it is stored is stored here, as only one thread at a time may sample.
        """
        answers: list[Sampled | Made | Problem] = []
        for sampled in self._sample(self._service, asked):
            if isinstance(sampled, Sampled) and sampled.adapter.is_streamed:
                answers.append(self.store(sampled))
            else:
                answers.append(sampled)
        return answers

    def store(self, sampled: Sampled) -> Made | Problem:
        """Put a sampled adapter together, store it, and note it as the answer to its condition."""
        service, adapter, started = sampled.service, sampled.adapter, time.perf_counter()
        try:
            service.catalog.check()
            digest = service.adapters.put(adapter)
            service.note_answer(sampled.condition, digest)
        except OralError as error:
            return describe(error)
        num_tokens = adapter.layout.num_tokens
        made = Made(
            adapter=AdapterInfo.of(digest, service.catalog.uri(digest), adapter.lora, adapter.provenance),
            batch_size=sampled.batch_size,
            num_tokens=num_tokens,
            queue_s=sampled.queue_s,
            sample_s=sampled.sample_s,
            store_s=time.perf_counter() - started,
        )
        self._metrics.tokens.inc(num_tokens, {})
        self._metrics.store_s.observe(made.store_s, {})
        return made

    def follow(self) -> None:
        """Load the current generator when it is another one.

        Requests are answered by the old one until the new one is ready, and a batch uses one of them throughout.
        """
        try:
            recipe = self._service.catalog.recipe
            if recipe == self._service.recipe:
                return
            loaded = open_service(self._config, self._device, recipe)
        except OralError as error:
            logger.warning("the generator stays %s: %s", self._service.recipe, error)
            return
        logger.info("generator %s takes the place of %s", recipe, self._service.recipe)
        self._service = loaded
        self._metrics.swaps.inc(1, {})

    def _sample(self, service: GenerationService, asked: Sequence[Asked]) -> list[Sampled | Problem]:
        started = time.perf_counter()
        try:
            adapters = service.factory.generate([condition for condition, _ in asked])
        except OralError as error:
            if len(asked) == 1:
                return [_problem(service, error)]
            return [self._sample(service, [one])[0] for one in asked]  # so that the one at fault fails alone
        sample_s = time.perf_counter() - started
        self._metrics.batch_size.observe(len(asked), {})
        self._metrics.sample_s.observe(sample_s, {})
        for _, arrived in asked:
            self._metrics.queue_s.observe(started - arrived, {})
        return [
            Sampled(condition, adapter, service, len(asked), started - arrived, sample_s)
            for (condition, arrived), adapter in zip(asked, adapters, strict=True)
        ]


def _problem(service: GenerationService, error: OralError) -> Problem:
    """The problem that an error is; a store that is away looks like one without that base, so it is looked for first."""
    try:
        service.catalog.check()
    except OralError as away:
        return describe(away)
    return describe(error)
