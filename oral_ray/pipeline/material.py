"""What a generator is trained on besides the rows of the shards: conditions, statistics, tasks on virtual base versions.

tables, probe_stats = tables_of(config, objects, manifest, bases, encoder)
draw = functional_draw(config, objects, manifest, records, encoder, tables, probe_stats, "cpu")
"""

import functools
from collections.abc import Mapping

from torch import Tensor

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.states import states_folder
from oral_ray.config import Config
from oral_ray.generator.condition import ConditionEncoder, ProbeStats, fit_probe_stats
from oral_ray.generator.data import CorpusTables
from oral_ray.generator.functional import FunctionalItems, FunctionalSource
from oral_ray.generator.spec import FunctionalItem
from oral_ray.generator.training import FunctionalDraw
from oral_ray.objects import Objects
from oral_ray.pipeline import corpus
from oral_ray.pipeline.own_tasks import subject_of, task_of
from oral_ray.store.bases import stored_probes
from oral_ray.store.shards import ShardManifest, read_stats
from oral_ray.tasks import expand


def further_tasks(config: Config) -> list[str]:
    """The tasks of the functional phase that have no adapters in the corpus; none without such a phase.

    Neither an unseen task is among them nor its opposite (`not-kind/bird` of `kind/bird`).
    """
    if not config.training.functional.steps:
        return []
    unseen = {subject_of(config, task_id) for task_id in expand(config.tasks.unseen)}
    further = [task_id for task_id in expand(config.tasks.further) if task_id not in config.tasks.ids]
    return [task_id for task_id in further if subject_of(config, task_id) not in unseen]


def training_prompts(config: Config, task_id: str) -> tuple[str, ...]:
    """The wordings of a task that a generator is trained on."""
    return task_of(config, task_id).prompts[: config.tasks.num_prompts]


def tables_of(
    config: Config, objects: Objects, manifest: ShardManifest, bases: dict[str, BaseRecord], encoder: ConditionEncoder
) -> tuple[CorpusTables, ProbeStats]:
    """What the rows refer to: prompts and bases as the network reads them, token and probe statistics."""
    probes = {base_id: stored_probes(objects, record, config.condition) for base_id, record in bases.items()}
    seen = [(record.spec.digest, probes[base_id]) for base_id, record in bases.items()]
    probe_stats = fit_probe_stats(seen, config.condition.num_components)
    further = {task_id: training_prompts(config, task_id) for task_id in further_tasks(config)}
    tables = CorpusTables(
        layouts=manifest.layouts,
        prompts={task: encoder.encode_prompts(prompts) for task, prompts in (manifest.prompts | further).items()},
        bases={i: encoder.encode_base(record, probes[i], probe_stats) for i, record in bases.items()},
        stats=read_stats(objects, manifest),
    )
    return tables, probe_stats


def functional_draw(
    config: Config, objects: Objects, manifest: ShardManifest, records: list[BaseRecord], encoder: ConditionEncoder,
    tables: CorpusTables, probe_stats: ProbeStats, device: str,
) -> FunctionalDraw:  # fmt: skip
    """`records` are the seen versions in the configured order, oldest first; each is loaded once a worker, on `device`.

    Versions of one architecture are mixed with each other; which architecture a draw is of follows from its seed.
    """
    tasks, further = (
        [corpus.training_task(config, task) for task in ids] for ids in (manifest.prompts, further_tasks(config))
    )
    items = []
    for architecture in dict.fromkeys(record.spec.digest for record in records):
        versions = [record for record in records if record.spec.digest == architecture]
        source = FunctionalSource(
            [load_base(record, config.bases.dtype, device) for record in versions],
            corpus.lines(config, [record.id for record in versions]),
            tasks,
            further,
            [layout for layout in manifest.layouts.values() if layout.architecture == architecture],
            config.training.functional,
            states_folder(),
        )
        probes = [stored_probes(objects, record, config.condition) for record in versions]
        encode = functools.partial(_encode_mixed, encoder, versions[-1], probe_stats)
        items.append(FunctionalItems(source, probes, tables, encode))

    def draw(seed: int, base_seed: int | None) -> FunctionalItem:
        return items[(seed if base_seed is None else base_seed) % len(items)].item(seed, base_seed)

    return draw


def _encode_mixed(
    encoder: ConditionEncoder, newest: BaseRecord, probe_stats: ProbeStats, mixed: Mapping[str, Tensor]
) -> Tensor:
    return encoder.encode_base(newest, mixed, probe_stats)
