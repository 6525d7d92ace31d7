"""The arms of an evaluation: every way to get an adapter for a task on a base, each made or trained where it is missing.

made = trained_arms(config, tasks, found, base_ids, beside=()) | made_arms(...)     # (base, task, arm, seed) -> digest
"""

from collections.abc import Sequence

from oral_ray.adapters.artifact import Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import detokenize
from oral_ray.bases.catalog import BaseRecord
from oral_ray.cluster import Call
from oral_ray.config import Arm, Config
from oral_ray.errors import EvaluationError
from oral_ray.evaluation import cells, static
from oral_ray.evaluation.cells import MAJORITY, ZERO_SHOT, Cell, Request
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.objects import open_objects
from oral_ray.pipeline import corpus
from oral_ray.pipeline.material import further_tasks
from oral_ray.pipeline.own_tasks import task_of
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.shards import ShardManifest, read_stats
from oral_ray.tasks import Task
from oral_ray.version import code_version

SEEDS = 1000  # of one generator (`evaluation.seeds` are below it); seed numbers of the next one start there
Digests = dict[tuple[str, str, Arm, int], str]  # (base, task, arm, seed) -> digest
OF_THE_BASE = {
    "trained",
    "trained_long",
    "generated",
    "held_out",
    "wrong_prompt",
    "refined_scratch",
    "refined_reuse_new",
    "refined_joint",
    "refined_generated",
}
FRAMES: dict[str, str] = {"prompted": "instructed/", "few_shot": "few-shot/", "multitask_instructed": "instructed/"}
_BARE: dict[Arm, str] = {"base": ZERO_SHOT, "majority": MAJORITY, "prompted": ZERO_SHOT, "few_shot": ZERO_SHOT}


def read_as(arm: str, task_id: str) -> str:
    """The task as the arm reads it: with the instruction in the text where nothing else carries it."""
    return FRAMES.get(arm, "") + task_id


def trained_arms(
    config: Config, task_ids: Sequence[str], found: dict[str, BaseRecord], base_ids: list[str], beside: Sequence[Call]
) -> Digests:
    """`trained`, `trained_long`, `reuse_*`, `joint`, the static controls, and the arms without an adapter."""
    arms = set(config.evaluation.arms)
    digests: Digests = {
        (base_id, task_id, arm, 0): name
        for task_id in task_ids
        for base_id in base_ids
        for arm, name in _BARE.items()
        if arm in arms
    }

    def sources(base_id: str) -> dict[Arm, list[str]]:
        newest, seen = corpus.newest_seen(config, base_id), corpus.alike(config, found, base_id)
        joint: dict[Arm, list[str]] = {"joint": seen} if arms & {"joint", "joint_virtual"} else {}
        long = [base_id] * len(seen)  # joint with itself
        return {"trained": [base_id], "trained_long": long, "reuse_old": seen[:1], "reuse_new": [newest], **joint}

    plan: list[tuple[str, str, Arm, int, corpus.CorpusRun]] = [
        (base_id, task_id, arm, seed, corpus.plan_run(config, task_id, [found[b] for b in source], seed))
        for base_id in base_ids
        for arm, source in sources(base_id).items()
        if arm in arms or arm == "joint"
        for task_id in task_ids
        for seed in config.corpus.seeds
    ]
    entries = corpus.train_runs(config, [run for *_, run in plan], found, beside)
    for (base_id, task_id, arm, seed, _), entry in zip(plan, entries, strict=True):
        digests[base_id, task_id, arm, seed] = entry.digests[-1]
    digests |= _static_arms(config, task_ids, found, base_ids, digests)
    return {key: digest for key, digest in digests.items() if key[2] in arms}


def _static_arms(
    config: Config, task_ids: Sequence[str], found: dict[str, BaseRecord], base_ids: list[str], digests: Digests
) -> Digests:
    """`joint_virtual`, `multitask`, `multitask_instructed`: one adapter for every base of an architecture."""
    arms, further = set(config.evaluation.arms), further_tasks(config)
    plan: dict[tuple[str, str, Arm, int], static.StaticRun] = {}
    for base_id in base_ids:
        seen = corpus.alike(config, found, base_id)
        if "joint_virtual" in arms:
            plan |= {
                (base_id, t, "joint_virtual", seed): static.joint_virtual(
                    config, t, seen, digests[base_id, t, "joint", seed], seed
                )
                for t in task_ids
                for seed in config.corpus.seeds
            }
        for instructed, arm in ((False, "multitask"), (True, "multitask_instructed")):
            if arm in arms:
                run = static.multitask(config, seen, further, instructed, config.corpus.seeds[0])
                plan |= {(base_id, task_id, run.arm, 0): run for task_id in task_ids}
    return dict(zip(plan, static.train_all(config, list(plan.values()), found), strict=True))


def made_arms(
    config: Config, task_ids: Sequence[str], manifest: ShardManifest, generators: dict[int, str],
    regression: str, found: dict[str, BaseRecord], base_ids: list[str],
) -> Digests:  # fmt: skip
    """`generated`, `held_out`, `wrong_prompt`, `regression`, `mean`, `nearest`."""
    arms = set(config.evaluation.arms)
    ids = list(task_ids)
    tasks = {task_id: task_of(config, task_id) for task_id in ids}
    requests: list[Request] = []
    keys: list[tuple[str, str, Arm, int]] = []
    samples = [(SEEDS * g + seed, recipe) for g, recipe in generators.items() for seed in config.evaluation.seeds]
    made: tuple[Arm, ...] = ("generated", "held_out", "wrong_prompt", "regression")
    for arm in made:
        if arm == "wrong_prompt" and len(ids) < 2:
            continue  # there is no other task whose prompt would be wrong
        for task_id in ids if arm in arms else ():
            other = ids[(ids.index(task_id) + 1) % len(ids)] if arm == "wrong_prompt" else task_id
            for base_id in base_ids:
                for seed, recipe in samples if arm != "regression" else [(0, regression)]:
                    keys.append((base_id, task_id, arm, seed))
                    requests.append(
                        Request(
                            arm=arm,
                            base=base_id,
                            task=task_id,
                            prompt=wording(tasks[other], held_out=arm == "held_out"),
                            seed=seed % SEEDS,
                            recipe=recipe,
                            num_steps=config.sampling.num_steps,
                        )
                    )
    digests: Digests = dict(zip(keys, cells.generate_all(config, requests, found), strict=True))
    if "mean" in arms:
        digests |= _mean_arm(config, ids, manifest, found, base_ids)
    if "nearest" in arms:
        digests |= _nearest_arm(config, ids, found, base_ids)
    return digests


def _mean_arm(
    config: Config, task_ids: Sequence[str], manifest: ShardManifest, found: dict[str, BaseRecord],
    base_ids: list[str],
) -> Digests:  # fmt: skip
    """The mean adapter of the layout's corpus, whatever the task."""
    objects = open_objects(config.store)
    store, stats = AdapterStore(objects), read_stats(objects, manifest)
    digests: Digests = {}
    for base_id in base_ids:
        layout = AdapterLayout.of(found[base_id].spec, config.lora, config.tokens.token_dim)
        if layout.digest not in stats.means:
            continue
        provenance = Provenance(
            origin="mean", base=base_id, base_fingerprint=found[base_id].fingerprint, code_version=code_version()
        )
        digest = store.put(build_artifact(detokenize(stats.means[layout.digest], layout), layout, provenance))
        for task_id in task_ids:
            digests[base_id, task_id, "mean", 0] = digest
    return digests


def _nearest_arm(config: Config, task_ids: Sequence[str], found: dict[str, BaseRecord], base_ids: list[str]) -> Digests:
    """The newest seen version's adapter of the training task whose prompt is nearest to a wording never trained on."""
    encoder = ConditionEncoder(config.condition)
    known = [*config.tasks.ids, *further_tasks(config)]
    prompts = encoder.encode_prompts([task_of(config, task_id).prompt for task_id in known])
    plan: dict[tuple[str, str, int], corpus.CorpusRun] = {}
    for task_id in task_ids:
        [asked] = encoder.encode_prompts([wording(task_of(config, task_id), held_out=True)])
        nearest = known[int((prompts @ asked).argmax())]
        for seed in config.corpus.seeds:
            for base_id in base_ids:
                newest = found[corpus.newest_seen(config, base_id)]
                plan[base_id, task_id, seed] = corpus.plan_run(config, nearest, [newest], seed)
    entries = corpus.train_runs(config, list(plan.values()), found)
    return {(b, t, "nearest", seed): entry.digests[-1] for (b, t, seed), entry in zip(plan, entries, strict=True)}


def wording(task: Task, held_out: bool) -> str:
    """The default wording of a task, or its first one that was never trained on (the default where it has none)."""
    return task.held_out_prompts[0] if held_out and task.held_out_prompts else task.prompt


def derived_arms(
    config: Config, task_ids: Sequence[str], found: dict[str, BaseRecord], base_ids: list[str], digests: Digests
) -> Digests:
    """`refined_*` and `best_*`, from the adapters of the arms that they are named after."""
    return _refined_arms(config, task_ids, found, base_ids, digests) | _best_arms(config, found, digests)


def _refined_arms(
    config: Config, task_ids: Sequence[str], found: dict[str, BaseRecord], base_ids: list[str], digests: Digests
) -> Digests:
    plan: dict[tuple[str, str, Arm, int], static.StaticRun] = {}
    for arm in config.evaluation.arms:
        if arm == "refined_scratch":
            keys = [(base, task, seed) for base in base_ids for task in task_ids for seed in config.corpus.seeds]
            plan |= {(b, t, arm, seed): static.refined(config, arm, b, t, "", seed) for b, t, seed in keys}
        elif arm.startswith("refined_"):
            source = _require(config, arm, arm.removeprefix("refined_"))
            plan |= {
                (b, t, arm, seed): static.refined(config, arm, b, t, digest, seed)
                for (b, t, of, seed), digest in digests.items()
                if of == source
            }
    return dict(zip(plan, static.train_all(config, list(plan.values()), found), strict=True))


def _best_arms(config: Config, found: dict[str, BaseRecord], digests: Digests) -> Digests:
    """Of all adapters of an arm, at every strength, the best on a few validation examples (the first of equals)."""
    best: dict[str, Arm] = {
        _require(config, arm, arm.removeprefix("best_")): arm
        for arm in config.evaluation.arms
        if arm.startswith("best_")
    }
    store = AdapterStore(open_objects(config.store))
    candidates: dict[tuple[str, str], dict[Arm, list[str]]] = {}
    for (base_id, task_id, of, _), digest in sorted(digests.items()):
        if of in best:
            layout = AdapterLayout.of(found[base_id].spec, config.lora, config.tokens.token_dim)
            made = [_stronger(store, digest, layout, strength) for strength in config.evaluation.strengths]
            candidates.setdefault((base_id, task_id), {}).setdefault(best[of], []).extend(made)
    wanted = [
        Cell(
            base=base_id,
            dtype=config.bases.dtype,
            task=task_id,
            digests=tuple(sorted({digest for of_arm in of_cell.values() for digest in of_arm})),
            split="validation",
            limit=config.evaluation.num_choice,
        )
        for (base_id, task_id), of_cell in candidates.items()
    ]
    answers = cells.score_all(config, wanted, found)
    return {
        (b, t, arm, 0): max(of_arm, key=lambda digest: sum(answers[b, t][digest]))
        for (b, t), of_cell in candidates.items()
        for arm, of_arm in of_cell.items()
    }


def _stronger(store: AdapterStore, digest: str, layout: AdapterLayout, strength: float) -> str:
    """The digest of the adapter with its change of the weights multiplied by `strength`."""
    if strength == 1.0:
        return digest
    artifact = store.get(digest)
    factors = {name: (a, strength * b) for name, (a, b) in artifact.factors(layout).items()}
    made = artifact.provenance
    scaled = made.model_copy(update={"strength": strength * made.strength})
    return store.put(build_artifact(factors, layout, scaled))


def _require(config: Config, arm: str, source: str) -> str:
    if source not in config.evaluation.arms:
        raise EvaluationError(f"arm {arm!r} is made from {source!r}; add it to evaluation.arms")
    return source
