"""What an arm is, and the list of all arms: whatever the files of this folder hold under the name `ARMS`.

names = arm_names()                      # in the order of every table
arms = chosen_arms(config.evaluation.arms)   # EvaluationError for a name that is none
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from oral_ray.errors import EvaluationError
from oral_ray.evaluation import arms as folder
from oral_ray.evaluation.context import EvaluationContext, Plan
from oral_ray.pipeline.run import Call


def _nothing_to_prepare(_: EvaluationContext) -> list[Call]:
    return []


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to get an adapter for a (base, task): how it is made, how it reads tasks, where it stands in tables.

    `plan` says of every (base, task, seed) what adapter to use or what to make; the evaluation makes what the arms of a
    wave ask for together. It may read the adapters of the arms in `needs` from the context.
    """

    name: str
    description: str
    order: int
    """Place among the arms of a table, smallest first; no two arms share one."""
    colour: str
    """In every figure, as #rrggbb; no two arms share one."""
    plan: Callable[[EvaluationContext], Plan]
    needs: tuple[str, ...] = ()
    """Arms whose adapters this one is made from."""
    shows_needs: bool = True
    """Whether these must be in the table too; else they are made without being scored."""
    prepare: Callable[[EvaluationContext], list[Call]] = _nothing_to_prepare
    """Calls that run in the time of the trainings of the corpus and must leave what `plan` relies on in the store."""
    for_its_base: bool = False
    """Whether each adapter is made for the very base that it is scored on; then another base in its record is an error."""
    frame: str = ""
    """How the arm reads a task, as the prefix of a task id (oral_ray/tasks/registry.py); empty: as it is."""
    is_reference: bool = False
    """Whether the report has a column of differences to this arm."""
    against: tuple[str, ...] = ()
    """Arms that the headline of an evidence suite subtracts from this one; empty: no such table."""
    measures_distance: bool = False
    """Whether the table of distances to the nearest corpus adapter has its adapters."""

    def reads(self, task_id: str) -> str:
        """The id of the task as this arm reads it, with the instruction in the text where nothing else carries it."""
        return self.frame + task_id


@functools.cache
def all_arms() -> tuple[Arm, ...]:
    """Every arm of every file of the folder, in the order of tables."""
    names = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    modules = [importlib.import_module(f"oral_ray.evaluation.arms.{name}") for name in names]
    found = [arm for module in modules for arm in getattr(module, "ARMS", ())]
    for field in ("name", "order", "colour"):
        values = [getattr(arm, field) for arm in found]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise EvaluationError(f"two arms have the {field} {twice!r}; give one of them another")
    return tuple(sorted(found, key=lambda arm: arm.order))


def arm_names() -> tuple[str, ...]:
    """The names of all arms, in the order of tables."""
    return tuple(arm.name for arm in all_arms())


def arm_of(name: str) -> Arm:
    """The arm of a name; EvaluationError names the nearest ones, or all where none is near."""
    by_name = {arm.name: arm for arm in all_arms()}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=3)
        valid = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(by_name)}"
        raise EvaluationError(f"evaluation.arms: there is no arm {name!r}; {valid}")
    return by_name[name]


def chosen_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, in the order of tables; EvaluationError for an unknown one or one without its source."""
    chosen = [arm_of(name) for name in names]
    for arm in chosen:
        for source in arm.needs:
            if arm.shows_needs and source not in names:
                raise EvaluationError(f"arm {arm.name!r} is made from {source!r}; add it to evaluation.arms")
    return sorted(chosen, key=lambda arm: arm.order)


def present(names: Iterable[str]) -> list[str]:
    """The arms that are among these names, in the order of tables."""
    there = set(names)
    return [name for name in arm_names() if name in there]


def reference_names() -> list[str]:
    """The arms that a report compares every other one with."""
    return [arm.name for arm in all_arms() if arm.is_reference]
