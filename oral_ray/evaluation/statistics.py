"""Means over tasks with bootstrap intervals, and paired differences: the same examples (and seeds) for both arms.

Letters: N examples, S seeds, R bootstrap draws.
"""

from collections.abc import Mapping

import numpy as np

from oral_ray.config import Record, derive_seed
from oral_ray.errors import EvaluationError


class Interval(Record):
    """A mean with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


def mean_over_tasks(correct: Mapping[str, np.ndarray], num_draws: int, seed: int = 0) -> Interval:
    """Mean accuracy over tasks of one arm, from {task: correct [S, N]}."""
    draws = _draws(correct, num_draws, seed)
    return _interval(float(np.mean([values.mean() for values in correct.values()])), draws)


def paired_difference(
    arm: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], num_draws: int, seed: int = 0
) -> Interval:
    """Mean over tasks of accuracy(arm) - accuracy(other), paired over examples (and seeds, where both have as many)."""
    if arm.keys() != other.keys():
        raise EvaluationError(f"arms were scored on other tasks: {sorted(arm)} and {sorted(other)}; score them again")
    for task in arm:
        if arm[task].shape[1] != other[task].shape[1]:
            raise EvaluationError(f"arms were scored on other examples of {task!r}; score them again with one limit")
    center = float(np.mean([arm[task].mean() - other[task].mean() for task in arm]))
    return _interval(center, _draws(arm, num_draws, seed) - _draws(other, num_draws, seed))


def _draws(correct: Mapping[str, np.ndarray], num_draws: int, seed: int) -> np.ndarray:
    """Bootstrap means [R]; the same seed, tasks and shapes draw the same examples, which is what pairs two arms."""
    total = np.zeros(num_draws)
    for task in sorted(correct):
        values = correct[task]
        rng = np.random.default_rng(derive_seed(seed, "bootstrap", task))
        examples = rng.integers(0, values.shape[1], (num_draws, values.shape[1]))
        seeds = np.random.default_rng([seed, 1, values.shape[0]]).integers(0, len(values), (num_draws, len(values)))
        per_seed_SR = np.stack([row[examples].mean(1) for row in values.astype(np.float32)])
        total += np.take_along_axis(per_seed_SR, seeds.T, axis=0).mean(0)
    return total / len(correct)


def _interval(center: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(mean=center, low=float(low), high=float(high))
