"""Ask a replica, and another one when it dies on the way: an answer is the same whoever gives it."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from serve.problems import BusyError

logger = logging.getLogger("ray.serve.oral")
ATTEMPTS = 3
T = TypeVar("T")


async def ask_again_when_lost(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer; BusyError when too much waits for a replica, or ATTEMPTS of them were lost."""
    for attempt in range(ATTEMPTS):
        try:
            return await ask()
        except BackPressureError:
            raise BusyError("too many requests wait for a generator; come back in a few seconds") from None
        except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
            logger.warning("attempt %d of %d: a generator was lost: %s", attempt + 1, ATTEMPTS, type(error).__name__)
    raise BusyError(f"{ATTEMPTS} generators were lost on this request; come back in a few seconds")
