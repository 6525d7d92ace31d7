"""Many calls as Ray tasks, no more in flight than the cluster has CPUs."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions
from tqdm import tqdm

from oral_ray.cluster.connection import limit_threads
from oral_ray.cluster.failures import users_error
from oral_ray.config import ClusterConfig
from oral_ray.errors import OralError, OutOfTimeError

logger = logging.getLogger(__name__)
_STARTED = time.monotonic()

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


def run_tasks(
    calls: Sequence[Call], config: ClusterConfig, *, determinism: bool, retries: int, label: str
) -> list[Any]:
    """`function(*arguments)` of every call as Ray tasks, results in the order of calls.

    At most `num_in_flight` are in flight. A lost worker is retried `retries` times, an exception
    of the function is not: the others finish, then the first one is raised. Raises OutOfTimeError when
    `config.stop_after_s` have passed since the process began and calls are left; those in flight finish first.
    """
    if not calls:
        return []

    def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        limit_threads(config.threads_per_task, determinism)
        return function(*arguments)

    task = ray.remote(call).options(
        num_cpus=config.cpus_per_task, num_gpus=config.gpus_per_task or None, max_retries=retries, name=label
    )
    width = num_in_flight(config)
    results: list[Any] = [None] * len(calls)
    waiting: dict[ray.ObjectRef, int] = {}
    failures: list[tuple[int, BaseException]] = []
    queue, num_done = iter(range(len(calls))), 0
    with tqdm(total=len(calls), desc=label, disable=not sys.stderr.isatty(), leave=False) as bar:
        while True:
            while not _out_of_time(config) and len(waiting) < width and (i := next(queue, None)) is not None:
                waiting[task.remote(*calls[i])] = i
            if not waiting:
                break
            done, _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(done[0])
            try:
                results[i] = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                failures.append((i, users_error(error) or error))
            except ray.exceptions.RayError as error:
                failures.append((i, OralError(f"{label} {i} was lost {retries + 1} times: {error}")))
            num_done += 1
            bar.update()
            logger.info("%s: %d of %d", label, num_done, len(calls))
    if failures:
        logger.error("%s: %d of %d failed", label, len(failures), len(calls))
        raise sorted(failures, key=lambda failure: failure[0])[0][1]
    if num_done < len(calls):
        raise OutOfTimeError(
            f"{label}: {num_done} of {len(calls)} done when cluster.stop_after_s={config.stop_after_s:g} had passed; "
            "run the same command again to go on"
        )
    return results


def num_in_flight(config: ClusterConfig) -> int:
    """How many tasks may be in flight at once: those of `num_cpus`, by default as many CPUs as the cluster has now."""
    cpus = config.num_cpus or ray.cluster_resources().get("CPU", 1)
    return max(1, int(cpus / config.cpus_per_task))


def _out_of_time(config: ClusterConfig) -> bool:
    return config.stop_after_s is not None and time.monotonic() - _STARTED > config.stop_after_s
