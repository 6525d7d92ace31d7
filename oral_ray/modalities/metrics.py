"""What the values of a task's examples are, and how the values of a set of examples become one figure.

A metric is one definition beside the reader whose values it describes, named in `metrics` of its modality. Tables are read
by its name, so whatever compares figures, takes means of values or prints them asks the metric how.

    ACCURACY = Metric("accuracy", is_fraction=True, counts_right_answers=True)
    RMSE = Metric("rmse", higher_is_better=False, figure=lambda errors_N: float(np.sqrt(np.mean(errors_N**2))))
    RMSE.best({"generated": 0.4, "reuse_new": 0.3})      # "reuse_new"

Letters: N examples, D features of an example.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Number = TypeVar("Number", float, np.ndarray)
Values = list[float] | list[list[float]]
"""One float per example, or one row of D floats per example where the figure is one of features."""


def mean(values_N: np.ndarray) -> float:
    """The figure of most metrics."""
    return float(np.mean(values_N))


@dataclass(frozen=True, slots=True)
class Metric:
    """What the values of a task's examples are, and how they become one figure."""

    name: str
    higher_is_better: bool = True
    figure: Callable[[np.ndarray], float] = mean
    """Takes the values [N] or [N, D] of a set of examples: their mean, or any function of the whole set (a Frechet
    distance of features). A bootstrap draws examples and asks it again, so both kinds have intervals."""
    is_fraction: bool = False
    """Whether figures lie in [0, 1]: they are printed in percent, differences in points."""
    decimals: int = 3
    """Digits behind the point of a figure that is no fraction."""
    counts_right_answers: bool = False
    """Whether a value is 1 for a right answer and 0 for any other: always giving the most frequent one then has values."""

    @property
    def is_mean(self) -> bool:
        """Whether the figure of a set is the mean of its values: many draws of examples are then one computation."""
        return self.figure is mean

    def better(self, one: float, other: float, by: float = 0.0) -> bool:
        """Whether one figure is better than another by more than `by`; never where one of them is no number."""
        return one > other + by if self.higher_is_better else one < other - by

    def gain(self, one: Number, other: Number) -> Number:
        """By how much one figure is better than another, also element by element: positive where it is better."""
        return one - other if self.higher_is_better else other - one

    def best(self, figures: Mapping[str, float]) -> str | None:
        """The name of the best figure, of equals the first; None where none is a number."""
        best = None
        for name, figure in figures.items():
            if not math.isnan(figure) and (best is None or self.better(figure, figures[best])):
                best = name
        return best

    def text(self, figure: float) -> str:
        """A figure as tables print it: in percent, or as it is."""
        return f"{100 * figure:.1f}" if self.is_fraction else f"{figure:.{self.decimals}f}"

    def signed_text(self, difference: float) -> str:
        """A difference with its sign: in points, or as it is."""
        return f"{100 * difference:+.1f}" if self.is_fraction else f"{difference:+.{self.decimals}f}"

    @property
    def label(self) -> str:
        """The name for an axis or a heading, with the direction where it is not the usual one."""
        return self.name if self.higher_is_better else f"{self.name} (lower is better)"

    @property
    def heading(self) -> str:
        """The label with the unit that tables print figures in."""
        return f"{self.label} %" if self.is_fraction else self.label

    @property
    def difference_unit(self) -> str:
        """What differences are printed in; they are gains, which has to be said where lower is better."""
        unit = "points" if self.is_fraction else self.name
        return unit if self.higher_is_better else f"{unit}, plus is better"


ACCURACY = Metric("accuracy", is_fraction=True, counts_right_answers=True)
"""The fraction of examples that are answered rightly; a free answer is right where it is exactly the wanted text."""
