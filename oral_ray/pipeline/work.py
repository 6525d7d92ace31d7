"""Work that is done once: looked up by the fingerprint of everything that decides it, made where it is missing.

    records = complete(run, "corpus", {recipe: training, ...}, train, lambda record: record["digests"])

The record of a piece of work is `records/<kind>/<fingerprint>.json`. Whoever makes it commits it when it is done: a
worker does so before it returns, so that nothing is lost with the process that asked.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from oral_ray.pipeline.run import Run

Finished = dict[str, Any]
"""The record of a finished piece of work."""
_W = TypeVar("_W")


def _no_adapters(record: Finished) -> Iterable[str]:
    return ()


def complete(
    run: Run, kind: str, wanted: Mapping[str, _W], make: Callable[[dict[str, _W]], Mapping[str, Finished]],
    adapters_of: Callable[[Finished], Iterable[str]] = _no_adapters, is_there: Callable[[str], bool] | None = None,
) -> dict[str, Finished]:  # fmt: skip
    """The records of all that is wanted, by fingerprint, in its order; `make` is asked for what is missing, if any is.

    Work counts as missing where it has no record, or one that names an adapter (`adapters_of`) which `is_there` denies;
    by default an adapter has to be in the store, whole or not. `make` returns committed records.
    """
    kept = look_up(run, kind, wanted, adapters_of, is_there or run.adapters.has)
    missing = {recipe: work for recipe, work in wanted.items() if recipe not in kept}
    made = make(missing) if missing else {}
    return {recipe: made[recipe] if recipe in missing else kept[recipe] for recipe in wanted}


def look_up(
    run: Run, kind: str, recipes: Iterable[str], adapters_of: Callable[[Finished], Iterable[str]] = _no_adapters,
    is_there: Callable[[str], bool] = lambda digest: True,
) -> dict[str, Finished]:  # fmt: skip
    """The records of the work that is done, by fingerprint; each adapter that they name is looked for once."""
    recipes = list(recipes)
    records = run.in_parallel(lambda recipe: run.records.get(kind, recipe), recipes)
    found = {recipe: record for recipe, record in zip(recipes, records, strict=True) if record is not None}
    named = list(dict.fromkeys(digest for record in found.values() for digest in adapters_of(record)))
    there = dict(zip(named, run.in_parallel(is_there, named), strict=True))
    return {recipe: record for recipe, record in found.items() if all(there[d] for d in adapters_of(record))}
