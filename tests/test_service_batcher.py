"""Requests that gather while a batch is under way."""

import asyncio
import threading

import pytest

from serve.batcher import Batcher


def test_what_arrives_one_by_one_while_a_batch_is_under_way_is_the_next_batch():
    seen, go_on = [], threading.Event()

    def call(asked: list[int]) -> list[int]:
        seen.append(list(asked))
        if len(seen) == 1:
            go_on.wait(10)
        return [10 * number for number in asked]

    async def main() -> list[int]:
        batcher = Batcher(call, max_size=3, wait_s=0)
        tasks = [asyncio.create_task(batcher(0))]
        while not seen:
            await asyncio.sleep(0.001)
        for number in range(1, 6):
            tasks.append(asyncio.create_task(batcher(number)))
            await asyncio.sleep(0.005)
        go_on.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [0, 10, 20, 30, 40, 50]
    assert seen == [[0], [1, 2, 3], [4, 5]]


def test_requests_that_come_together_are_one_batch_and_a_later_one_its_own():
    seen = []

    async def main() -> None:
        batcher = Batcher(lambda asked: seen.append(list(asked)) or asked, max_size=8, wait_s=0.05)
        await asyncio.gather(*(batcher(number) for number in range(4)))
        await batcher(9)

    asyncio.run(main())
    assert seen == [[0, 1, 2, 3], [9]]


def test_what_is_raised_reaches_every_request_of_its_batch_and_no_other():
    def call(asked: list[int]) -> list[int]:
        if 1 in asked:
            raise ValueError("one")
        return asked

    async def main() -> list[int | BaseException]:
        batcher = Batcher(call, max_size=2, wait_s=0.01)
        found = await asyncio.gather(*(batcher(number) for number in range(4)), return_exceptions=True)
        return [*found, await batcher(7)]

    first, second, *others = asyncio.run(main())
    assert isinstance(first, ValueError) and isinstance(second, ValueError)
    assert others == [2, 3, 7]


def test_a_call_that_answers_too_few_is_an_error_of_its_requests_and_the_next_are_answered():
    async def main() -> list[int | BaseException]:
        batcher = Batcher(lambda asked: asked[:1], max_size=2, wait_s=0.01)
        found = await asyncio.gather(*(batcher(number) for number in range(2)), return_exceptions=True)
        return [*found, await batcher(7)]

    first, second, later = asyncio.run(asyncio.wait_for(main(), 10))
    assert (first, later) == (0, 7) and isinstance(second, ValueError)


def test_a_request_that_was_cancelled_while_it_waited_is_not_made():
    seen = []

    async def main() -> None:
        batcher = Batcher(lambda asked: seen.append(list(asked)) or asked, max_size=8, wait_s=0.05)
        tasks = [asyncio.create_task(batcher(number)) for number in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        assert await asyncio.gather(tasks[0], tasks[2]) == [0, 2]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    asyncio.run(main())
    assert seen == [[0, 2]]
