"""Batches of what waits: while one call is under way, requests gather, and the next call takes them together.

`ray.serve.batch` closes a batch `batch_wait_timeout_s` after its first request even when the one before it has not ended,
so requests that arrive one by one beside a busy sampler are batches of one for ever (measured: docs/service.md).
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batcher(Generic[Asked, Answer]):
    """`call` with as many waiting requests as `max_size` allows, one call at a time, in a thread.

    The first request after a pause waits `wait_s` for others that come with it. What `call` raises is raised for every
    request of that call; a request that was cancelled while it waited is left out.
    """

    def __init__(self, call: Callable[[list[Asked]], list[Answer]], max_size: int, wait_s: float) -> None:
        self._call, self._max_size, self._wait_s = call, max_size, wait_s
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, asked: Asked) -> Answer:
        """The answer to one request."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        await asyncio.sleep(self._wait_s)
        while self._waiting:
            self._waiting = [pair for pair in self._waiting if not pair[1].done()]
            taken, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
            try:
                found = await asyncio.to_thread(self._call, [asked for asked, _ in taken]) if taken else []
                for (_, answer), one in zip(taken, found, strict=True):
                    if not answer.done():
                        answer.set_result(one)
            except Exception as error:  # whatever it is, it is the requests' and not the worker's
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
