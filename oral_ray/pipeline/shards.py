"""Stage 2: tokenise the corpus with Ray Data: artifacts -> gauge-fixed weight tokens -> Parquet shards + statistics.

Writes `shards/<fingerprint>/<attempt>/`, then the manifest that names the attempt.
"""

import contextlib
import hashlib
import pickle
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from oral_ray.adapters.gauge import canonical
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenMoments, tokenize
from oral_ray.config import StoreConfig, fingerprint
from oral_ray.errors import ArtifactError, StoreError
from oral_ray.objects import Objects, open_objects
from oral_ray.pipeline.corpus import Corpus, CorpusEntry, plan_learned, seen_ids
from oral_ray.pipeline.material import training_prompts
from oral_ray.pipeline.run import Run
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.shards import ShardManifest, commit_shards, corpus_rows, read_manifest, shard_prefix

RECIPE_VERSION = 2


def write_shards(run: Run, corpus: Corpus) -> ShardManifest:
    """The manifest of what the run's generator learns from, tokenised where it is not yet."""
    entries = [corpus[planned.recipe] for planned in plan_learned(run)]
    prompts = {task_id: training_prompts(run, task_id) for task_id in run.config.tasks.ids}
    recipe = fingerprint("shards", RECIPE_VERSION, [entry.run.recipe for entry in entries], run.config.tokens, prompts)
    if (done := read_manifest(run.objects, recipe)) is not None:
        return done
    if (made := _tokenise(run, recipe, entries, prompts)) is not None:
        return made
    return require_manifest(run.objects, recipe)  # another run was first


def require_manifest(objects: Objects, recipe: str) -> ShardManifest:
    """The manifest of shards that are there; StoreError where they are not."""
    manifest = read_manifest(objects, recipe)
    if manifest is None:
        raise StoreError(f"shards {recipe} are not in {objects.uri}; run jobs/shards.py")
    return manifest


def _tokenise(
    run: Run, recipe: str, entries: Sequence[CorpusEntry], prompts: Mapping[str, tuple[str, ...]]
) -> ShardManifest | None:
    """Write the shards, then their manifest; None, and nothing is kept, where another run's manifest was first."""
    from oral_ray.cluster.data import fold_parquet, write_parquet  # it imports Ray Data

    objects, tokens = run.objects, run.config.tokens
    layouts = [
        AdapterLayout.of(run.bases[entry.run.bases[0]].spec, entry.run.lora, tokens.token_dim) for entry in entries
    ]
    items = plan_rows(entries, layouts, tokens.last_checkpoints)
    if not items:
        raise StoreError("the corpus is empty: configure at least one seen base version and one task")
    by_digest = {layout.digest: layout for layout in layouts}
    references: dict[str, str] = {}
    for entry, layout in zip(entries, layouts, strict=True):
        references.setdefault(layout.digest, entry.digests[-1])
    attempt = uuid.uuid4().hex[:12]
    prefix = shard_prefix(recipe, attempt)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(_discard, objects, prefix)
        transform = tokenizer(run.config.store, by_digest, references if tokens.gauge else {})
        write_parquet(items, transform, f"{objects.uri}/{prefix}".rstrip("/"), tokens.rows_per_file)
        keys = [info.key for info in objects.list(prefix)]
        moments = TokenMoments()
        for data in fold_parquet([f"{objects.uri}/{key}" for key in keys], measurer(by_digest)):
            moments.merge(pickle.loads(data))
        stats = moments.finish()
        manifest = ShardManifest(
            fingerprint=recipe,
            attempt=attempt,
            files=tuple(key.removeprefix(prefix) for key in keys),
            num_rows=len(items),
            layouts=by_digest,
            bases=tuple(seen_ids(run.config)),
            prompts=dict(prompts),
            scales=tuple((role, factor, rows) for (role, factor), rows in stats.scales.items()),
        )
        if commit_shards(objects, manifest, stats):
            on_failure.pop_all()
            return manifest
    return None


def plan_rows(
    entries: Sequence[CorpusEntry], layouts: Sequence[AdapterLayout], last_checkpoints: int | None
) -> list[dict[str, Any]]:
    """The rows of the shards, without tokens, shuffled by their hash: each checkpoint of a run once a base it is for.

    `layouts` are those of the entries, in their order.
    """
    items = [
        {"digest": digest, "layout": layout.digest, "base": base_id, "task": entry.run.task, "seed": entry.run.seed,
         "step": step}
        for entry, layout in zip(entries, layouts, strict=True)
        for base_id in entry.run.bases
        for step, digest in list(enumerate(entry.digests))[-(last_checkpoints or len(entry.digests)) :]
    ]  # fmt: skip
    return sorted(items, key=lambda item: hashlib.sha256(f"{item['digest']}/{item['step']}".encode()).digest())


def _discard(objects: Objects, prefix: str) -> None:
    """Nothing is kept of an attempt that failed or came second."""
    for info in list(objects.list(prefix)):
        objects.delete(info.key)


def tokenizer(
    store: StoreConfig, layouts: dict[str, AdapterLayout], references: dict[str, str]
) -> Callable[[pa.Table], pa.Table]:
    """Worker: a transform that adds the tokens of each row's adapter; without references the gauge is left alone.

    A damaged or non-finite adapter raises ArtifactError and nothing is committed.
    """

    def transform(table: pa.Table) -> pa.Table:
        adapters = AdapterStore(open_objects(store))
        fixed = {key: canonical(adapters.get(digest).factors(layouts[key])) for key, digest in references.items()}
        tokens = []
        for row in table.to_pylist():
            layout = layouts[row["layout"]]
            factors = adapters.get(row["digest"]).factors(layout)
            if references:
                factors = canonical(factors, fixed[row["layout"]])
            tokens_LD = tokenize(factors, layout).tokens_LD
            if not torch.isfinite(tokens_LD).all():
                raise ArtifactError(f"adapter {row['digest'][:12]} overflows in its canonical form; train it again")
            tokens.append(tokens_LD.numpy().astype("<f4").tobytes())
        return table.append_column("tokens", pa.array(tokens, pa.large_binary()))

    return transform


def measurer(layouts: dict[str, AdapterLayout]) -> Callable[[pa.Table], bytes]:
    """Worker: a fold that returns the moments of one block of shard rows."""

    def measure(table: pa.Table) -> bytes:
        moments = TokenMoments()
        for row in corpus_rows(table.to_pylist(), layouts):
            moments.add(layouts[row.layout], row.tokens_LD)
        return pickle.dumps(moments)

    return measure
