"""Many calls as Ray tasks, no more in flight than the cluster has CPUs."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from oral_ray.cluster.connection import limit_threads, require_ray
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

    When a call fails, the others finish, then the first failure is raised; otherwise as `each_task`.
    """
    results: list[Any] = [None] * len(calls)
    for i, result in each_task(calls, config, determinism=determinism, retries=retries, label=label):
        results[i] = result
    if failures := [result for result in results if isinstance(result, Exception)]:
        logger.error("%s: %d of %d failed", label, len(failures), len(calls))
        raise failures[0]
    return results


def each_task(
    calls: Sequence[Call], config: ClusterConfig, *, determinism: bool, retries: int, label: str,
    retry_on: tuple[type[Exception], ...] = (),
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """(index, result) of every call as it ends, run as Ray tasks; the result of one that failed is its exception.

    At most `num_in_flight` are in flight. A lost worker and an exception of `retry_on` are retried `retries` times,
    other exceptions of the function are not. Raises OutOfTimeError when
    `config.stop_after_s` have passed since the process began and calls are left; those in flight finish first.
    """

    def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        limit_threads(config.threads_per_task, determinism)
        return function(*arguments)

    if not calls:
        return
    if config.address == "none":
        finished = _one_by_one(calls, call, config, retries, retry_on)
    else:
        finished = _on_ray(calls, call, config, retries, retry_on, label)
    num_done = 0
    with tqdm(total=len(calls), desc=label, disable=not sys.stderr.isatty(), leave=False) as bar:
        for i, result in finished:
            num_done += 1
            bar.update()
            logger.info("%s: %d of %d", label, num_done, len(calls))
            yield i, result
    if num_done < len(calls):
        raise OutOfTimeError(
            f"{label}: {num_done} of {len(calls)} done when cluster.stop_after_s={config.stop_after_s:g} had passed; "
            "run the same command again to go on"
        )


def _on_ray(
    calls: Sequence[Call], call: Callable[..., Any], config: ClusterConfig, retries: int,
    retry_on: tuple[type[Exception], ...], label: str,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    import ray
    import ray.exceptions

    from oral_ray.cluster.failures import users_error

    require_ray(label)
    asked: dict[str, Any] = {"num_cpus": config.cpus_per_task, "max_retries": retries}
    if config.gpus_per_task:  # said to `remote`, and not to `options`, it makes every task a process of its own
        asked["num_gpus"] = config.gpus_per_task
    remote: Any = ray.remote(**asked)
    task = remote(call).options(retry_exceptions=list(retry_on) or False, name=label)
    width = num_in_flight(config)
    waiting: dict[ray.ObjectRef, int] = {}
    queue = iter(range(len(calls)))
    while True:
        while not _out_of_time(config) and len(waiting) < width and (i := next(queue, None)) is not None:
            waiting[task.remote(*calls[i])] = i
        if not waiting:
            return
        done, _ = ray.wait(list(waiting), num_returns=1)
        i = waiting.pop(done[0])
        try:
            yield i, ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            yield i, users_error(error) or error
        except ray.exceptions.RayError as error:
            yield i, OralError(f"{label} {i} was lost {retries + 1} times: {error}")


def _one_by_one(
    calls: Sequence[Call], call: Callable[..., Any], config: ClusterConfig, retries: int,
    retry_on: tuple[type[Exception], ...],
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    for i, one in enumerate(calls):
        result: Any = None
        for attempt in range(retries + 1):
            if _out_of_time(config):
                return
            try:
                result = call(*one)
            except Exception as error:  # as on Ray, where a task is a process: the other calls do not end with it
                result = error
            if not isinstance(result, retry_on) or attempt == retries:
                break
        yield i, result


def num_in_flight(config: ClusterConfig) -> int:
    """How many tasks may be in flight at once: those of `num_cpus`, by default as many CPUs as the cluster has now."""
    import ray

    cpus = config.num_cpus or ray.cluster_resources().get("CPU", 1)
    return max(1, int(cpus / config.cpus_per_task))


def _out_of_time(config: ClusterConfig) -> bool:
    return config.stop_after_s is not None and time.monotonic() - _STARTED > config.stop_after_s
