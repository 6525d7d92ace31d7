"""Figures of a metric as means over tasks with bootstrap intervals, and paired differences of two arms.

A bootstrap draw takes the same examples (and seeds) for both arms, which is what pairs them. The figure of a drawn set is
the metric's, be it a mean over examples or a function of the whole set; all tasks of one call have one metric.

    mean_over_tasks({"x": values_SN}, ACCURACY, num_draws=2000)

Letters: N examples, S seeds, R bootstrap draws. Values are [S, N], or [S, N, ...] where the figure is one of features.
"""

from collections.abc import Mapping

import numpy as np

from oral_ray.config import Record, derive_seed
from oral_ray.errors import EvaluationError
from oral_ray.modalities import Metric

TaskValues = Mapping[str, np.ndarray]
"""Values [S, N, ...] of one arm by task."""


class Interval(Record):
    """A mean with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


def mean_over_tasks(values: TaskValues, metric: Metric, num_draws: int, seed: int = 0) -> Interval:
    """Mean over tasks of one arm's figure by a metric, with its interval."""
    return _interval(figure_over_tasks(values, metric), _draws(values, metric, num_draws, seed))


def figure_over_tasks(values: TaskValues, metric: Metric) -> float:
    """Mean over tasks of one arm's figure by a metric; over seeds the mean of each one's figure."""
    return float(np.mean([_over_seeds(of_task, metric) for of_task in values.values()]))


def paired_difference(arm: TaskValues, other: TaskValues, metric: Metric, num_draws: int, seed: int = 0) -> Interval:
    """By how much one arm is better than another, as the mean over tasks; negative where it is worse.

    That is arm - other, and other - arm where lower is better. Paired over examples (and seeds, where both have as many);
    EvaluationError where the two were not scored on the same tasks and examples.
    """
    if arm.keys() != other.keys():
        raise EvaluationError(f"arms were scored on other tasks: {sorted(arm)} and {sorted(other)}; score them again")
    for task in arm:
        if arm[task].shape[1] != other[task].shape[1]:
            raise EvaluationError(f"arms were scored on other examples of {task!r}; score them again with one limit")
    differences = [metric.gain(_over_seeds(arm[task], metric), _over_seeds(other[task], metric)) for task in arm]
    draws = metric.gain(_draws(arm, metric, num_draws, seed), _draws(other, metric, num_draws, seed))
    return _interval(float(np.mean(differences)), draws)


def _over_seeds(values: np.ndarray, metric: Metric) -> float:
    """The mean over seeds of their figures; of a mean over examples in one step."""
    return float(values.mean()) if metric.is_mean else float(np.mean([metric.figure(row) for row in values]))


def _draws(values: TaskValues, metric: Metric, num_draws: int, seed: int) -> np.ndarray:
    """Bootstrap means over tasks [R]; the same seed, tasks and shapes draw the same examples, which is what pairs arms."""
    total = np.zeros(num_draws)
    for task in sorted(values):
        num_seeds, num_examples = values[task].shape[:2]
        rng = np.random.default_rng(derive_seed(seed, "bootstrap", task))
        examples_RN = rng.integers(0, num_examples, (num_draws, num_examples))
        seeds_RS = np.random.default_rng([seed, 1, num_seeds]).integers(0, num_seeds, (num_draws, num_seeds))
        figures_SR = _drawn_figures(values[task], examples_RN, metric)
        total += np.take_along_axis(figures_SR, seeds_RS.T, axis=0).mean(0)
    return total / len(values)


def _drawn_figures(values: np.ndarray, examples_RN: np.ndarray, metric: Metric) -> np.ndarray:
    """The figure [S, R] of every seed's values at the examples of every draw; means without a loop over draws."""
    if metric.is_mean:
        return np.stack([row[examples_RN].mean(1) for row in values.astype(np.float32)])
    return np.array([[metric.figure(row[examples_N]) for examples_N in examples_RN] for row in values])


def _interval(center: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(mean=center, low=float(low), high=float(high))
