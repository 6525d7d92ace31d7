"""Of several adapters for a task on a base, the best on a few validation examples (`evaluation.num_choice`)."""

from collections.abc import Sequence

from oral_ray.config import Record
from oral_ray.evaluation import cells
from oral_ray.evaluation.cells import Cell
from oral_ray.pipeline.run import Run


class Choice(Record):
    """The adapters to choose among, by digest; of equals, or where no figure is a number, the first is taken."""

    base: str
    task: str
    candidates: tuple[str, ...]


def choose_all(run: Run, choices: Sequence[Choice]) -> list[str]:
    """The digest that each choice comes to; candidates of one (base, task) are scored together."""
    candidates: dict[tuple[str, str], set[str]] = {}
    for choice in choices:
        candidates.setdefault((choice.base, choice.task), set()).update(choice.candidates)
    wanted = [
        Cell(
            base=base_id,
            dtype=run.config.bases.dtype,
            task=task_id,
            digests=tuple(sorted(digests)),
            split="validation",
            limit=run.config.evaluation.num_choice,
        )
        for (base_id, task_id), digests in candidates.items()
    ]
    scored = cells.score_all(run, wanted)
    chosen = []
    for choice in choices:
        best = scored[choice.base, choice.task].best(choice.candidates)
        chosen.append(best or choice.candidates[0])
    return chosen
