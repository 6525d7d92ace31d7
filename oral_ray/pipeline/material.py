"""What a generator is trained on besides the rows of the shards: conditions, statistics, tasks on virtual base versions.

tables, probe_stats = tables_of(run, manifest, bases, encoder)
draw = functional_draw(run, manifest, bases, encoder, tables, probe_stats, "cpu")
"""

import functools
from collections.abc import Mapping

from torch import Tensor

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.generator.condition import ConditionEncoder, ProbeStats, fit_probe_stats
from oral_ray.generator.data import CorpusTables
from oral_ray.generator.functional import FunctionalItems, FunctionalSource
from oral_ray.generator.spec import FunctionalItem
from oral_ray.generator.training import FunctionalDraw
from oral_ray.pipeline import corpus
from oral_ray.pipeline.run import Run
from oral_ray.store.shards import ShardManifest
from oral_ray.tasks import expand


def auxiliary_tasks(run: Run) -> list[str]:
    """The tasks of the functional phase that have no adapters in the corpus (`tasks.further`); none without such a phase.

    Neither an unseen task is among them nor its opposite (`not-kind/bird` of `kind/bird`).
    """
    config, tasks = run.config, run.tasks
    if not config.training.functional.steps:
        return []
    unseen = {tasks.subject(task_id) for task_id in expand(config.tasks.unseen)}
    auxiliary = [task_id for task_id in expand(config.tasks.further) if task_id not in config.tasks.ids]
    return [task_id for task_id in auxiliary if tasks.subject(task_id) not in unseen]


def training_prompts(run: Run, task_id: str) -> tuple[str, ...]:
    """The wordings of a task that a generator is trained on."""
    return run.task(task_id).prompts[: run.config.tasks.num_prompts]


def tables_of(
    run: Run, manifest: ShardManifest, bases: Mapping[str, BaseRecord], encoder: ConditionEncoder
) -> tuple[CorpusTables, ProbeStats]:
    """What the rows refer to: prompts and bases as the network reads them, token and probe statistics."""
    condition = run.config.condition
    probes = {base_id: run.probes(record) for base_id, record in bases.items()}
    seen = [(record.spec.digest, probes[base_id]) for base_id, record in bases.items()]
    probe_stats = fit_probe_stats(seen, condition.num_components)
    auxiliary = {task_id: training_prompts(run, task_id) for task_id in auxiliary_tasks(run)}
    tables = CorpusTables(
        layouts=manifest.layouts,
        prompts={task: encoder.encode_prompts(prompts) for task, prompts in (manifest.prompts | auxiliary).items()},
        bases={i: encoder.encode_base(record, probes[i], probe_stats) for i, record in bases.items()},
        stats=run.token_stats(manifest),
    )
    return tables, probe_stats


def functional_draw(
    run: Run, manifest: ShardManifest, bases: Mapping[str, BaseRecord], encoder: ConditionEncoder, tables: CorpusTables,
    probe_stats: ProbeStats, device: str,
) -> FunctionalDraw:  # fmt: skip
    """`bases` are the seen versions in the configured order, oldest first; each is loaded once a worker, on `device`.

    Versions of one architecture are mixed with each other; which architecture a draw is of follows from its seed.
    """
    config = run.config
    tasks = [corpus.training_task(run, task_id) for task_id in manifest.prompts]
    auxiliary = [corpus.training_task(run, task_id) for task_id in auxiliary_tasks(run)]
    items = []
    for architecture in dict.fromkeys(record.spec.digest for record in bases.values()):
        versions = [record for record in bases.values() if record.spec.digest == architecture]
        source = FunctionalSource(
            [load_base(record, config.bases.dtype, device) for record in versions],
            corpus.lineages(config, [record.id for record in versions]),
            tasks,
            auxiliary,
            [layout for layout in manifest.layouts.values() if layout.architecture == architecture],
            config.training.functional,
            states_folder(),
        )
        probes = [run.probes(record) for record in versions]
        encode = functools.partial(_encode_mixed, encoder, versions[-1], probe_stats)
        items.append(FunctionalItems(source, probes, tables, encode))

    def draw(seed: int, base_seed: int | None) -> FunctionalItem:
        return items[(seed if base_seed is None else base_seed) % len(items)].item(seed, base_seed)

    return draw


def _encode_mixed(
    encoder: ConditionEncoder, newest: BaseRecord, probe_stats: ProbeStats, mixed: Mapping[str, Tensor]
) -> Tensor:
    return encoder.encode_base(newest, mixed, probe_stats)
