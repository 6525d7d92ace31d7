"""Nights and runs: faults 7, 16, 17, 18, 19, 20a, 21a, and the night of 11.

A store with a trained generator is copied, and the nightly job runs in this process (`cluster.address=none`); a task of
one's own runs as a user runs it, by a job on Ray. `tests/nightly_fixtures.py` of the code under test makes the copy.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from fault_checks.bases import ODD, each
from fault_checks.place import FaultError, Place, check, find, has, has_runs, read_json

SMALL = (
    'training.engine={kind = "torch"}', "training.num_workers=1", "training.functional.steps=2",
    "training.validate_every=20", "training.checkpoint_every=20",
)  # fmt: skip
GATE = "tests/test_nightly_gate.py::"
NIGHTS = "tests/test_nightly_regenerate.py::"
OWN = "tests/test_tasks_own.py::"
BASE = "v9"


def prepared(place: Place) -> Path:
    """A copy of the trained store in which a version `v9` has landed."""
    from nightly_fixtures import copied, land

    store = copied(place.store, place.work / "store")
    land(store, BASE)
    return store


def config_of(place: Place, store: Path, *overrides: str, name: str = "tiny", steps: int = 40) -> Any:
    from nightly_fixtures import tiny_config

    source = place.inputs / "sound/bases/bert"
    about = [f"name={name}", f"training.steps={steps}", f'regenerate.bases=["{BASE}"]', *SMALL, *overrides]
    return tiny_config(store, source, *about)


def module(*names: str) -> Any:
    """The first of these modules that there is."""
    import importlib

    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise LookupError(f"the code under test has none of {names}")


def night(config: Any) -> Any:
    """The summary of a run of the nightly job that takes the generator which is there, whatever else is configured."""
    regenerate = module("oral_ray.nightly.regenerate", "oral_ray.stages.regenerate")
    if hasattr(regenerate, "run_night"):
        run = regenerate.open_run(config)
        recipe = regenerate.dry_run(run).generator
        run = regenerate.resolve_bases(run, regenerate._needed(run))
        return regenerate.regenerate(regenerate.Trained(run, {}, None, recipe))
    recipe = regenerate.dry_run(config).generator
    with mock.patch.object(regenerate.train, "run", lambda _: recipe):
        return regenerate.run(config)


def published(store: Path) -> list[Path]:
    return sorted((store / "published" / BASE).iterdir())


def resolved(store: Path, served: str, names: list[str]) -> list[str]:
    """The names of adapters that our resolver for vLLM gives to an engine that serves a base under this name."""
    import asyncio

    from vllm_interface import Engine, install

    class Patch:
        @staticmethod
        def setitem(where: Any, key: str, value: Any) -> None:
            where[key] = value

    registry = install(Patch())
    from oral_ray.plugins.vllm import register

    register({"ORAL_STORE": f"file://{store}", "ORAL_CACHE": str(store.parent / "cache")})

    async def ask() -> list[str]:
        engine = Engine(registry, served)
        return [name for name in names if await engine.resolve(name) is not None]

    return asyncio.run(ask())


@each({
    "7a": ("what a joint adapter wins is published for the served base", "joint"),
    "7b": ("what a reused adapter wins is published for the served base", "reuse_new"),
}, GATE + "test_whatever_wins_names_the_base_that_it_is_released_for_as_it_is_served",
   "tests/test_plugins_vllm.py::test_what_is_released_for_the_served_base_is_taken_whatever_base_it_was_made_for",
   timeout_s=400)  # fmt: skip
def winner_names_its_base(place: Place, arm: str) -> None:
    store = prepared(place)
    targets = "joint" if arm == "joint" else "single"
    night(config_of(place, store, f'regenerate.candidates=["{arm}"]', f'corpus.targets="{targets}"'))
    folders = published(store)
    named = {read_json(folder / "adapter_config.json")["base_model_name_or_path"] for folder in folders}
    cards = {re.findall(r'^base_model: "?([^"\n]*)', (folder / "README.md").read_text(), re.M)[0] for folder in folders}
    said = {read_json(folder / "provenance.json")["base"] for folder in folders}
    taken = resolved(store, BASE, [folder.name for folder in folders])
    if named | cards | said != {BASE} or len(taken) != len(folders):
        names = f"config, card and provenance say {sorted(named | cards | said)}"
        raise FaultError(f"published for {BASE}, {names}; our resolver gives {len(taken)} of {len(folders)}")


@check("9b", "provenance says version and commit of the code",
       "tests/test_generation_factory.py::test_provenance_is_complete", timeout_s=400)  # fmt: skip
def code_version(place: Place) -> None:
    store = prepared(place)
    night(config_of(place, store, 'regenerate.candidates=["generated"]'))
    found = {read_json(folder / "provenance.json")["code_version"] for folder in published(store)}
    if not all(re.search(r"\+[0-9a-f]{7,}", version) for version in found):
        raise FaultError(f"provenance says code version {sorted(found)}")


@check("11d", "a night over odd folders ends well, names them, and releases the sound base",
       "tests/test_nightly_poison.py::test_a_night_over_a_folder_in_latin1_ends_well_and_is_written_down",
       timeout_s=400)  # fmt: skip
def odd_night(place: Place) -> None:
    from nightly_fixtures import land

    store = prepared(place)
    for number, spoil in enumerate(ODD.values()):
        spoil(land(store, f"odd-{number}"))
    said = place.python(
        place.code / "jobs/regenerate.py", "--config", place.code / "tests/tiny.toml", "--store", store,
        "--summary", place.work / "night.json", "cluster.address=none", 'regenerate.bases=["v9", "odd-*"]', *SMALL,
        "regenerate.retries=0", 'regenerate.candidates=["reuse_new"]', "training.steps=40",
        f"bases.versions.0.origin.source={place.inputs / 'sound/bases/bert'}",
    )  # fmt: skip
    if said.code not in (0, 3):
        raise FaultError(f"exit code {said.code}: {said.last}")
    text = (place.work / "night.json").read_text()
    if not (store / "published" / BASE).exists() or not all(f"odd-{number}" in text for number in range(2)):
        raise FaultError("the sound base is not released, or an odd one is not named")


def train_own_task(place: Place, task: str, cwd: Path) -> None:
    """Corpus, shards, training and evaluation of one task of one's own, by the quickstart job."""
    shutil.copytree(place.store / "bases", place.work / "store/bases")
    said = place.python(
        place.code / "jobs/quickstart.py", "--config", place.code / "tests/tiny.toml", "--store", place.work / "store",
        f"out={place.work / 'out'}", *SMALL, "training.steps=40", f'tasks.ids=["{task}"]', "tasks.further=[]",
        "tasks.unseen=[]", 'evaluation.arms=["base", "majority", "generated"]', "evaluation.max_test=10",
        "evaluation.max_validation=10", 'bases.versions=[{id="tiny-t0", origin={kind="landed"}}, '
        '{id="tiny-t2", seen=false, origin={kind="landed"}}]', needs_ray=True, cwd=cwd,
    )  # fmt: skip
    if said.code:
        lines = [line for line in said.text.splitlines() if "Error" in line or line.startswith("error:")] or [said.last]
        raise FaultError(f"exit code {said.code}: {lines[-1][:240]}")


@check("16a", "a task of one's own by an absolute path goes from its folder to scores",
       OWN + "test_a_task_of_ones_own_is_trained_and_scored_where_its_folder_is_not",
       OWN + "test_one_folder_is_one_task_however_it_is_spelled", timeout_s=1800)  # fmt: skip
def absolute_task(place: Place) -> None:
    train_own_task(place, str(place.inputs / "tasks/spam"), place.code)


@check("16b", "a worker knows a task that was named by a path relative to the shell",
       OWN + "test_a_worker_knows_the_task_by_its_id_without_the_folder_and_in_any_place")  # fmt: skip
def relative_task(place: Place) -> None:
    """The parts that a worker does, in another folder than the one where the job was typed."""
    from oral_ray.config import load_config

    os.chdir(place.inputs / "tasks")
    config = load_config(place.code / "tests/tiny.toml", [f"store.uri={place.work / 'store'}", 'tasks.ids=["./spam"]'])
    config, [task] = entered(config), entered(config).tasks.ids
    os.chdir(place.work)
    found = task_on_worker(config, task)
    if found.id != task:
        raise FaultError(f"configured as {task!r}, on a worker it is {found.id!r}")


@check("16d", "the id under which a task folder is configured is the id of its task",
       OWN + "test_one_folder_is_one_task_however_it_is_spelled")  # fmt: skip
def one_id(place: Place) -> None:
    """Tables are made by the configured ids, rows by the ids of the tasks."""
    from oral_ray.config import load_config

    tasks = f'tasks.ids=["{place.inputs}/tasks/spam"]'
    config = entered(load_config(place.code / "tests/tiny.toml", [f"store.uri={place.work / 'store'}", tasks]))
    [task] = config.tasks.ids
    found = task_on_worker(config, task)
    if found.id != task:
        raise FaultError(f"tables are keyed by {task!r}, its rows by {found.id!r}")


@check("16c", "a folder that was moved keeps its id, or has shards of its own",
       OWN + "test_one_folder_is_one_task_however_it_is_spelled", timeout_s=300)  # fmt: skip
def moved_task(place: Place) -> None:
    """Shards name the ids of tasks; those of another id are of no use to a run."""
    shutil.copytree(place.inputs / "tasks/spam", place.work / "elsewhere/spam")
    recipe, ids = shards_of(place, f'tasks.ids=["{place.inputs}/tasks/spam"]')
    again, other_ids = shards_of(place, f'tasks.ids=["{place.work}/elsewhere/spam"]')
    if recipe == again and ids != other_ids:
        raise FaultError(f"the shards that name {ids[0]!r} are taken for {other_ids[0]!r}")


@check("20a", "another number of prompts makes other shards", OWN + "test_another_number_of_prompts_makes_other_shards",
       timeout_s=300)  # fmt: skip
def number_of_prompts(place: Place) -> None:
    found = [shards_of(place, 'tasks.ids=["wordnet/mind"]', f"tasks.num_prompts={n}") for n in (2, 4)]
    if found[0] == found[1]:
        raise FaultError("with 2 and with 4 prompts a task the shards have one name, the first ones stay")


class NamedError(Exception):
    """Ends the making of shards when their name is known."""


def shards_of(place: Place, *overrides: str) -> tuple[str, tuple[str, ...]]:
    """The name of the shards of a configuration, and the ids of its tasks; its corpus is trained in this process."""
    shards = module("oral_ray.pipeline.shards", "oral_ray.stages.shards")
    store = place.work / "store"
    if not store.exists():
        shutil.copytree(place.store / "bases", store / "bases")
    landed = 'bases.versions=[{id="tiny-t0", origin={kind="landed"}}]'
    config = config_of(place, store, "tasks.further=[]", "tasks.unseen=[]", "corpus.steps=2", landed, *overrides)

    def there(objects: Any, recipe: str) -> None:
        raise NamedError(recipe)

    config = entered(config)
    with mock.patch.object(shards, "read_manifest", there):
        try:
            write_shards(shards, config)
        except NamedError as found:
            return str(found), tuple(config.tasks.ids)
    raise LookupError("no manifest of shards was asked for")


def write_shards(shards: Any, config: Any) -> None:
    """Tokenise the corpus, which is trained where it is missing."""
    if not has_runs():
        shards.run(config)
        return
    run = module("oral_ray.pipeline.run").begin_run(config)
    with run.session():
        run = module("oral_ray.pipeline.bases").resolve_bases(run)
        shards.write_shards(run, module("oral_ray.pipeline.corpus").train_corpus(run))


def task_on_worker(config: Any, task: str) -> Any:
    """A task as a worker gets it."""
    if has_runs():
        return module("oral_ray.pipeline.run").open_run(config).task(task)
    if has("oral_ray.pipeline.own_tasks"):
        return module("oral_ray.pipeline.own_tasks").task_of(config, task)
    return find("load_task", "oral_ray.tasks")(task)


def entered(config: Any) -> Any:
    """The configuration as a job starts with it: task folders are entered into the store, where the code does so."""
    if has_runs():
        return module("oral_ray.pipeline.run").begin_run(config).config
    return module("oral_ray.pipeline.own_tasks").enter_tasks(config) if has("oral_ray.pipeline.own_tasks") else config


def generated(config: Any, arm: str, task: str, prompt_of: str) -> str:
    """The digest of an adapter that an evaluation generates on v9 for an arm of a task, from the prompt of a task."""
    cells = module("oral_ray.evaluation.cells", "oral_ray.stages.cells")
    regenerate = module("oral_ray.nightly.regenerate", "oral_ray.stages.regenerate")
    run = regenerate.open_run(config) if has_runs() else config
    recipe = regenerate.dry_run(run).generator
    request = cells.Request(
        arm=arm, base_id=BASE, task=task, prompt=find("load_task", "oral_ray.tasks")(prompt_of).prompt, seed=0,
        recipe=recipe, num_steps=config.sampling.num_steps,
    )  # fmt: skip
    bases = regenerate.survey(run, recipe).bases
    return cells.generate_here(run, [request], bases[BASE] if has_runs() else bases)[0]


@check("17", "a released adapter says what it is released for, not what made it first",
       GATE + "test_an_adapter_that_another_use_made_first_says_how_it_was_made_and_is_released_for_its_task",
       "tests/test_service_released.py::test_a_released_adapter_has_the_task_and_arm_of_its_release",
       timeout_s=400)  # fmt: skip
def first_writer(place: Place) -> None:
    store = prepared(place)
    config = config_of(place, store, 'regenerate.candidates=["generated"]', "regenerate.num_candidates=1")
    first = generated(config, "wrong_prompt", "wordnet/mind", "wordnet/matter")
    night(config)
    for folder in published(store):
        if folder.name.startswith("wordnet-matter"):
            said, card = read_json(folder / "provenance.json"), (folder / "README.md").read_text()
            if said["origin"] == "wrong_prompt" or said["task"] == "wordnet/mind" or "wrong_prompt" in card:
                use = f"origin {said['origin']!r}, task {said['task']!r}"
                raise FaultError(f"released for wordnet/matter, {first[:8]} says {use}")
            return
    raise LookupError("nothing was released for wordnet/matter")


@each({
    "18a": ("a damaged generated candidate is made again", "damage"),
    "18b": ("a deleted generated candidate is made again", "delete"),
}, GATE + "test_a_generated_candidate_that_is_lost_is_generated_again", timeout_s=400)  # fmt: skip
def lost_candidate(place: Place, how: str) -> None:
    store = prepared(place)
    config = config_of(place, store, 'regenerate.candidates=["generated"]', "regenerate.retries=0")
    spoil(store / "adapters" / generated(config, "generated", "wordnet/matter", "wordnet/matter"), how)
    night(config)
    summary = night(config)
    if not any(row["task"] == "wordnet/matter" for row in summary.published):
        reasons = [item.reason for item in summary.failed] or [str(item.refused) for item in summary.outcomes]
        raise FaultError(f"on the second night still not released: {'; '.join(reasons)[:240]}")


@check("18c", "a deleted adapter of the corpus is trained again",
       GATE + "test_a_deleted_adapter_of_the_corpus_is_trained_again", timeout_s=400)  # fmt: skip
def lost_corpus(place: Place) -> None:
    store = prepared(place)
    runs = [json.loads(path.read_text()) for path in sorted((store / "records/corpus").glob("*.json"))]
    lost = [store / "adapters" / run["digests"][-1] for run in runs]
    for folder in lost:
        spoil(folder, "delete")
    summary = night(config_of(place, store, 'regenerate.candidates=["reuse_new"]', "regenerate.retries=0"))
    if not any((folder / "adapter_config.json").exists() for folder in lost):
        reasons = [item.reason for item in summary.failed] or [str(item.refused) for item in summary.outcomes]
        raise FaultError(f"none of {len(lost)} is made again: {'; '.join(reasons)[:200]}")


def spoil(folder: Path, how: str) -> None:
    """Delete an adapter, or change a byte of its weights; its files may be links into another store."""
    for path in list(folder.iterdir()):
        data = bytearray(path.read_bytes())
        path.unlink()
        if how == "damage":
            data[-10] ^= path.name.endswith(".safetensors")
            path.write_bytes(data)


@check("19", "two configurations over one store leave each other's releases alone",
       NIGHTS + "test_two_configurations_over_one_store_do_not_undo_each_other",
       "tests/test_store_releases.py::test_two_configurations_over_one_store_keep_releases_of_their_own",
       timeout_s=600)  # fmt: skip
def two_configurations(place: Place) -> None:
    store = prepared(place)
    about = ('regenerate.candidates=["reuse_new"]', "regenerate.retries=0")
    both = [config_of(place, store, *about, name=name, steps=steps) for name, steps in (("tiny", 40), ("other", 41))]
    for config in both:
        night(config)
    due = [(config.name, item.task) for config in both for item in night(config).plan if item.action == "generate"]
    if due:
        raise FaultError(f"on the second night {len(due)} of 4 pairs are due again, such as {due[0]}")


@check("21a", "the summary of a night outlives a store that fails at its end",
       NIGHTS + "test_the_summary_of_a_run_outlives_a_store_that_fails_at_its_end", timeout_s=400)  # fmt: skip
def lost_summary(place: Place) -> None:
    from oral_ray.errors import StoreError
    from oral_ray.objects import FileObjects

    store, put = prepared(place), FileObjects.put

    def failing(self: Any, key: str, data: bytes) -> None:
        if key.startswith("runs/"):
            raise StoreError("403 ExpiredToken")
        put(self, key, data)

    with mock.patch.object(FileObjects, "put", failing):
        try:
            summary = night(config_of(place, store, 'regenerate.candidates=["reuse_new"]', "regenerate.retries=0"))
        except StoreError as error:
            raise FaultError(f"what was released is said to nobody, the job ends with: {error}") from None
    if not summary.outcomes:
        raise FaultError("the summary says nothing of what was done")
