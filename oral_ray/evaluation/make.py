"""Make the adapters of the configured arms, wave by wave: arms that are made from others come after these.

digests = make_arms(evaluation)     # (base, task, arm, seed) -> digest

What the arms of one wave ask for is made together: one round on the cluster for all trainings of the corpus, one for all
generated adapters, one for all static ones, one for all choices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from oral_ray.errors import EvaluationError
from oral_ray.evaluation import cells, choice
from oral_ray.evaluation.arms.registry import Arm, arm_of, chosen_arms
from oral_ray.evaluation.cells import Request
from oral_ray.evaluation.choice import Choice
from oral_ray.evaluation.context import Digests, EvaluationContext
from oral_ray.pipeline import corpus, static
from oral_ray.pipeline.corpus import CorpusRun
from oral_ray.pipeline.run import Call, Run
from oral_ray.pipeline.static import StaticRun


def make_arms(evaluation: EvaluationContext) -> Digests:
    """The adapters of every arm of the evaluation, made where they are missing, in the order of tables.

    Raises EvaluationError for an unknown arm, or one without the arm that it is made from.
    """
    asked = chosen_arms(evaluation.arms)
    trainings = [call for arm in asked for call in arm.prepare(evaluation)]
    for wave in _waves(asked, {arm for _, _, arm, _ in evaluation.made}):
        evaluation = replace(evaluation, made=evaluation.made | _make_wave(evaluation, wave, trainings))
        trainings = []
    return {
        (base_id, task_id, arm.name, seed): digest
        for arm in asked
        for (base_id, task_id, seed), digest in evaluation.made_by(arm.name).items()
    }


def check_bases(digests: Digests, run: Run) -> None:
    """EvaluationError when an adapter that was made for one base version would be scored on another.

    Of the arms that are made for the very base; reuse and static arms are meant to travel.
    """
    for (base_id, task_id, arm, _), digest in digests.items():
        if not arm_of(arm).for_its_base:
            continue
        _, made = run.adapters.about(digest)
        if made.base_fingerprint != run.bases[base_id].fingerprint:
            raise EvaluationError(
                f"the {arm} adapter {digest[:12]} of {task_id} was made for {made.base!r}, not for {base_id!r}; its record "
                "is wrong, delete it from the store and run again"
            )


def _waves(arms: Sequence[Arm], made: set[str]) -> Iterator[list[Arm]]:
    """The arms that are not made yet and those that they need, each after all that it needs."""
    left = {arm.name: arm for arm in _with_needs(arms) if arm.name not in made}
    while left:
        wave = [arm for arm in left.values() if not set(arm.needs) & left.keys()]
        if not wave:
            raise EvaluationError(f"the arms {', '.join(left)} are made from each other; look at their `needs`")
        yield sorted(wave, key=lambda arm: arm.order)
        left = {name: arm for name, arm in left.items() if arm not in wave}


def _with_needs(arms: Sequence[Arm]) -> Iterator[Arm]:
    for arm in arms:
        yield from _with_needs([arm_of(name) for name in arm.needs])
        yield arm


def _make_wave(evaluation: EvaluationContext, arms: Sequence[Arm], trainings: Sequence[Call]) -> Digests:
    """What these arms plan; `trainings` are other calls that run in the time of those of the corpus."""
    plan: dict[tuple[str, str, str, int], Any] = {
        (base_id, task_id, arm.name, seed): work
        for arm in arms
        for (base_id, task_id, seed), work in arm.plan(evaluation).items()
    }

    def train(run: Run, planned: list[CorpusRun]) -> list[str]:
        return [entry.digests[-1] for entry in corpus.train_runs(run, planned, trainings)]

    rounds: list[tuple[type, Callable[..., list[str]]]] = [
        (CorpusRun, train),
        (Request, cells.generate_all),
        (StaticRun, static.train_all),
        (Choice, choice.choose_all),
    ]
    made: Digests = {key: work for key, work in plan.items() if isinstance(work, str)}
    for kind, make in rounds:
        wanted = {key: work for key, work in plan.items() if isinstance(work, kind)}
        if wanted or (kind is CorpusRun and trainings):
            digests = make(evaluation.run, list(wanted.values()))
            made |= dict(zip(wanted, digests, strict=True))
    return {key: made[key] for key in plan}
