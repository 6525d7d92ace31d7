"""Every worker of a stage puts its base, or its generator, on the device that its tasks were given."""

from collections.abc import Callable
from typing import Any

import pytest

from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import BaseVersion, Config, EvolveOrigin, PretrainOrigin, build_config
from oral_ray.evaluation import cells
from oral_ray.evaluation.arms.refined import refined_run
from oral_ray.objects import FileObjects
from oral_ray.pipeline import bases, corpus, run, static
from oral_ray.pipeline.run import open_run
from oral_ray.store.adapters import AdapterStore
from oral_ray.study import stages as study

THERE = "the device of the task"


class SeenError(Exception):
    """Raised where the device arrives."""


@pytest.fixture
def config(objects: FileObjects) -> Config:
    return build_config({"cluster": {"gpus_per_task": 0.25}, "store": {"uri": str(objects.root)}})


def arrives(*arguments: Any, **named: Any) -> Any:
    raise SeenError([*arguments, *named.values()])


def version(origin: EvolveOrigin | PretrainOrigin) -> BaseVersion:
    return BaseVersion(id="t1", origin=origin)


EVOLVED = version(EvolveOrigin(parent="t0"))
PRETRAINED = version(PretrainOrigin(parent="t0", corpus="code"))
WORKERS: dict[str, tuple[Any, str, Callable[[Config, BaseRecord], Any]]] = {
    "an evolved version": (bases, "evolve_base", lambda c, b: bases.make_base(c, "t1/", EVOLVED, b)),
    "a pretrained version": (bases, "pretrain_base", lambda c, b: bases.make_base(c, "t1/", PRETRAINED, b)),
    "a training": (
        corpus, "load_base", lambda c, b: corpus.train_run(c, corpus.plan_run(open_run(c), "wordnet/matter", [b], 0), [b])
    ),
    "a static adapter": (
        static, "load_base",
        lambda c, b: static.train_run(c, refined_run(c, "refined_scratch", b.id, "wordnet/matter", "", 0), [b], "r"),
    ),
    "scores": (
        cells, "load_base",
        lambda c, b: cells.score_cell(
            c, cells.Cell(base=b.id, dtype="float32", task="wordnet/matter", digests=("x",), split="test", limit=1), b
        ),
    ),
    "drift": (study, "load_base", lambda c, b: study.measure_drift(c, b, b)),
}  # fmt: skip


@pytest.mark.parametrize("what", WORKERS)
def test_a_worker_computes_where_its_tasks_were_given_a_gpu(
    what: str, config: Config, tiny_bert: Any, monkeypatch: pytest.MonkeyPatch
):
    room, name, work = WORKERS[what]
    given = []
    place = bases if room is bases else run
    monkeypatch.setattr(place, "device_of", lambda num_gpus: given.append(num_gpus) or THERE)
    monkeypatch.setattr(room, name, arrives)
    monkeypatch.setattr(AdapterStore, "get", lambda self, digest: None)
    from factory_fixtures import base_of

    with pytest.raises(SeenError) as seen:
        work(config, base_of(tiny_bert).record)
    assert THERE in seen.value.args[0] and given == [0.25]
