"""Stage 5: for every complete, unreleased base version: generate, compare with reuse, gate on validation, publish.

Reads generators, corpus and landed bases; writes `<publish_prefix>/<base>/<adapter_id>/`, `releases/<base>/<name>/`, a
record of every decision, and one of the run (`runs/`) where there was something to do. Reads no test data.

    summary = run_night(open_run(config))       # once
    for summary in watch(config): ...           # again and again
    plan = survey(run, recipe).plan             # only look
"""

import fnmatch
import functools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from oral_ray.bases.catalog import BaseRecord, SkippedBase
from oral_ray.bases.events import MAX_WAIT_S, EventQueue, changed_bases
from oral_ray.config import BaseVersion, Config, LandedOrigin, canonical_json
from oral_ray.errors import GeneratorError, OralError, StoreError
from oral_ray.nightly.gate import Item, Outcome, decided, regenerate_item
from oral_ray.nightly.plan import PlanItem, plan_releases
from oral_ray.nightly.summary import (
    WHOLE_BASE,
    FailedItem,
    RegenerationSummary,
    once_a_base,
    published_rows,
    reason_of,
)
from oral_ray.pipeline import corpus
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.run import Run, open_run
from oral_ray.pipeline.walk import Trained, walk
from oral_ray.store.generators import Lineage, current_generator, generator_lineage
from oral_ray.store.latest import LatestRelease, latest_of
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies in the store, and what is to be done about it."""

    bases: dict[str, BaseRecord]
    skipped: list[SkippedBase]
    plan: list[PlanItem]
    latest: dict[str, LatestRelease]


def watch(config: Config) -> Iterator[RegenerationSummary]:
    """A run now, one every `regenerate.poll_s`, and in between one for the bases that an event names; without end.

    The tasks of the configuration are resolved; each run looks at the store anew.
    """
    queue = EventQueue(config.regenerate.events) if config.regenerate.events else None
    while True:
        listed_s = time.monotonic()
        yield run_night(open_run(config))
        while (left_s := listed_s + config.regenerate.poll_s - time.monotonic()) > 0:
            if queue is None:
                time.sleep(left_s)
                continue
            hints = queue.wait(min(left_s, MAX_WAIT_S))
            run = open_run(config)
            if changed := changed_bases(hints, run.objects.uri, config.bases.prefix):
                yield run_night(run, changed)
            queue.done(hints)


def run_night(run: Run, only: Collection[str] | None = None) -> RegenerationSummary:
    """The pipeline where it is not done, then `regenerate`."""
    return regenerate(walk(resolve_bases(run, _needed(run))), only)


def regenerate(trained: Trained, only: Collection[str] | None = None) -> RegenerationSummary:
    """Regenerate everything that is due (of the bases `only`); a second run finds it released and does nothing."""
    started, run, recipe = datetime.now(UTC), trained.run, trained.recipe
    surveyed = survey(run, recipe, only)
    items = _items(trained, surveyed)
    known = [_decided(run, item) for item in items]
    outcomes = [outcome for outcome in known if outcome is not None and outcome.decision.arm is None]
    todo = [item for item, outcome in zip(items, known, strict=True) if outcome is None or outcome.decision.arm]
    made, failed = _work(run, recipe, todo)
    latest, lost = _afterwards(run) if todo else (surveyed.latest, [])
    summary = RegenerationSummary(
        started=started.isoformat(timespec="seconds"),
        wall_s=(datetime.now(UTC) - started).total_seconds(),
        generator=recipe,
        skipped_bases=tuple(surveyed.skipped),
        plan=tuple(surveyed.plan),
        outcomes=tuple(outcomes + made),
        failed=(*failed, *lost),
        published=published_rows(latest, surveyed.bases, run.objects.uri),
    )
    return _kept(run, summary, started) if todo else summary


def _afterwards(run: Run) -> tuple[dict[str, LatestRelease], list[FailedItem]]:
    """What is released after a run; where the store cannot say, a failure that says so: the run's summary is not lost."""
    try:
        return latest_of(run.objects, run.config.name), []
    except StoreError as error:
        reason = f"what is released cannot be read ({reason_of(error)}); see oral-ray list"
        return {}, [FailedItem(base_id="*", task="*", reason=reason)]


def _kept(run: Run, summary: RegenerationSummary, started: datetime) -> RegenerationSummary:
    """Keep a summary in `runs/`; one that the store does not take is returned with that failure."""
    try:
        run.objects.put(f"runs/{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.json", canonical_json(summary).encode())
    except StoreError as error:
        lost = FailedItem(base_id="*", task="*", reason=f"this summary is not kept in the store: {reason_of(error)}")
        return summary.model_copy(update={"failed": (*summary.failed, lost)})
    return summary


def dry_run(run: Run) -> RegenerationSummary:
    """What `run_night` would find and do; it starts nothing and trains no generator."""
    uri, name = run.objects.uri, run.config.name
    recipe = current_generator(run.objects, name)
    if recipe is None:
        raise GeneratorError(f"{uri} has no generator of {name!r}; run jobs/train.py, or without --dry-run")
    surveyed = survey(run, recipe)
    return RegenerationSummary(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        generator=recipe,
        skipped_bases=tuple(surveyed.skipped),
        plan=tuple(surveyed.plan),
        published=published_rows(surveyed.latest, surveyed.bases, uri),
    )


def survey(run: Run, recipe: str, only: Collection[str] | None = None) -> Survey:
    """Look what has landed and what is released, and plan."""
    config = run.config
    landed, skipped = run.base_store.discover(config.regenerate.quiet_period_s, only)
    chosen = [base for base in landed if any(fnmatch.fnmatch(base.id, glob) for glob in config.regenerate.bases)]
    if only is None:  # a mistyped pattern would do nothing, every night, and say so to nobody
        skipped += _matching_nothing(config, [base.id for base in (*landed, *skipped)])
    latest = latest_of(run.objects, config.name)
    released: set[tuple[str, str, str]] = set()
    for base in chosen:
        release = latest[base.id].release if base.id in latest else None
        released |= {(base.id, base.fingerprint, adapter.task) for adapter in _current(config, release, base, recipe)}
    architectures = run.generator_card(recipe).spec.architectures
    plan = plan_releases(chosen, config.tasks.ids, architectures, config.lora, released)
    return Survey({base.id: base for base in chosen}, skipped, plan, latest)


def _matching_nothing(config: Config, names: list[str]) -> list[SkippedBase]:
    """The patterns of the configuration that no base's name fits, each with the setting in which it stands."""
    patterns = {"bases": config.regenerate.bases, "served_names": tuple(config.regenerate.served_names)}
    missed = []
    for setting, globs in patterns.items():
        reason = f"nothing under {config.bases.prefix}/ has such a name; see regenerate.{setting}"
        missed += [SkippedBase(id=glob, reason=reason) for glob in globs if not fnmatch.filter(names, glob)]
    return missed


def _needed(run: Run) -> list[BaseVersion]:
    """Without the unseen versions that others put there, or that are there: one that is broken must not stop the rest."""
    return [
        version
        for version in run.config.bases.versions
        if version.seen or not (isinstance(version.origin, LandedOrigin) or run.base_store.has(version.id))
    ]


def _items(trained: Trained, surveyed: Survey) -> list[Item]:
    """What is to be done, with the adapters of the corpus that each could reuse; trained where they are missing."""
    run = trained.run
    config, known = run.config, run.bases
    seen = corpus.seen_ids(config)

    @functools.cache
    def of_corpus(base_ids: tuple[str, ...], task_id: str) -> corpus.CorpusRun:
        return corpus.plan_run(run, task_id, [known[base_id] for base_id in base_ids], config.corpus.seeds[0])

    def reusable(planned: PlanItem) -> dict[str, corpus.CorpusRun]:
        base = surveyed.bases[planned.base_id]
        same = [base_id for base_id in seen if known[base_id].spec.digest == base.spec.digest]
        ancestor = corpus.newest_seen(config, base.id)
        trained_on = {
            "joint": same if config.corpus.targets == "joint" else [],
            "reuse_new": [ancestor] if ancestor in same else same[-1:],
            "reuse_old": same[:1],
        }
        wanted = {name: ids for name, ids in trained_on.items() if ids and name in config.regenerate.candidates}
        return {name: of_corpus(tuple(ids), planned.task) for name, ids in wanted.items()}

    due = [(planned, reusable(planned)) for planned in surveyed.plan if planned.action == "generate"]
    trainings = [training for _, reuse in due for training in reuse.values()]
    digests = {entry.run.recipe: entry.digests[-1] for entry in corpus.train_runs(run, trainings)}
    fingerprints = {task_id: run.task(task_id).fingerprint for task_id in config.tasks.ids}
    return [
        Item(
            base=surveyed.bases[planned.base_id],
            task=planned.task,
            task_fingerprint=fingerprints[planned.task],
            recipe=trained.recipe,
            reuse={name: digests[training.recipe] for name, training in reuse.items()},
        )
        for planned, reuse in due
    ]


def _decided(run: Run, item: Item) -> Outcome | None:
    """What was decided before; None also where that cannot be read: its worker then says so, of this item alone."""
    try:
        return decided(run, item)
    except Exception:
        logger.exception("what was decided of %s on %s cannot be read", item.task, item.base.id)
        return None


def _work(run: Run, recipe: str, items: list[Item]) -> tuple[list[Outcome], list[FailedItem]]:
    """Decide and publish every item on the cluster; a base is released as soon as its last item has ended.

    Whatever an item or a release raises is said of it by name, and the others are done.
    """
    due = Counter(item.base.id for item in items)
    left = due.copy()
    won: dict[str, list[ReleasedAdapter]] = {base_id: [] for base_id in left}
    outcomes: dict[int, Outcome] = {}
    failed: list[FailedItem] = []
    calls = [(regenerate_item, (run.config, item)) for item in items]
    retries = run.config.regenerate.retries
    for i, result in run.each_on_cluster(calls, label="regenerate", retries=retries, retry_on=(StoreError,)):
        base = items[i].base
        if isinstance(result, Exception):
            failed.append(_failure(base.id, items[i].task, result))
        else:
            outcomes[i], adapter = result
            won[base.id] += [adapter] if adapter else []
        left[base.id] -= 1
        if not left[base.id] and won[base.id]:
            try:
                _release(run, generator_lineage(run.objects, recipe), base, won[base.id])
            except Exception as error:
                failed.append(_failure(base.id, WHOLE_BASE, error))
    return [outcomes[i] for i in sorted(outcomes)], once_a_base(failed, due)


def _failure(base_id: str, task: str, error: Exception) -> FailedItem:
    """What failed and why; what is no error meant for a user goes to the log whole."""
    if not isinstance(error, OralError):
        logger.error("%s on %s failed", task, base_id, exc_info=error)
    return FailedItem(base_id=base_id, task=task, reason=reason_of(error))


def _release(run: Run, generator: Lineage, base: BaseRecord, adapters: Collection[ReleasedAdapter]) -> None:
    """One release that names what was released for the same base and generator, and these adapters, one a task.

    When a run at the same time was faster, it is made again on top of that one's, so that no item of either is lost.
    """

    config = run.config

    def change(before: Release | None) -> Release:
        tasks = {adapter.task: adapter for adapter in adapters}
        tasks |= {adapter.task: adapter for adapter in _current(config, before, base, generator.recipe)}
        return Release(
            base_id=base.id,
            base_fingerprint=base.fingerprint,
            generator=generator.recipe,
            name=config.name,
            served_name=config.regenerate.served_name(base.id),
            generator_digest=generator.digest,
            corpus=generator.corpus,
            adapters=tuple(tasks[task] for task in sorted(tasks)),
        )

    number = ReleaseStore(run.objects).amend(base.id, config.name, change)
    logger.info("base %s: release %d of %s", base.id, number, config.name)


def _current(config: Config, release: Release | None, base: BaseRecord, recipe: str) -> tuple[ReleasedAdapter, ...]:
    """The adapters of a release, when it is one of this very base version, as it is served, and generator."""
    if release is None or release.served_name != config.regenerate.served_name(base.id):
        return ()
    fresh = (release.base_fingerprint, release.generator) == (base.fingerprint, recipe)
    return release.adapters if fresh else ()
