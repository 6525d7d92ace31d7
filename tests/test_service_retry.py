"""A replica that is lost on the way is replaced by another one; too many who wait are sent away."""

import asyncio

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from serve.problems import BusyError
from serve.retry import ATTEMPTS, ask_again_when_lost


def ask(*errors: Exception) -> tuple[str, int]:
    """The answer of replicas that fail with these errors first, and how often one was asked."""
    left, num_asked = list(errors), 0

    async def one() -> str:
        nonlocal num_asked
        num_asked += 1
        if left:
            raise left.pop(0)
        return "made"

    return asyncio.run(ask_again_when_lost(one)), num_asked


def test_a_lost_replica_costs_one_more_question():
    assert ask() == ("made", 1)
    assert ask(RayActorError()) == ("made", 2)


def test_who_loses_every_replica_is_told_to_come_back():
    with pytest.raises(BusyError, match=f"{ATTEMPTS} generators were lost"):
        ask(*[RayActorError()] * ATTEMPTS)


def test_a_full_queue_is_not_asked_again():
    with pytest.raises(BusyError, match="too many requests wait"):
        ask(BackPressureError(num_queued_requests=1, max_queued_requests=1))


def test_what_a_replica_raises_itself_is_passed_on():
    with pytest.raises(ValueError, match="a fault"):
        ask(ValueError("a fault"))
