"""What an adapter looks like: the norm of its change by module, and the trained adapters of the store that are near it.

One damaged adapter of the corpus costs the report nothing but that adapter, which is named. An adapter is not its own
neighbour, whatever it is called: what counts is its tensors and scale, not the base that its configuration names.
"""

import dataclasses
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.distance import change_norm, relative_distances
from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.errors import ArtifactError, LayoutError, StoreError
from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records
from serve.schema import AdapterReport, ModuleNorm, Neighbour, SkippedAdapter

NUM_NEAREST, MAX_COMPARED = 5, 500
_RECORDS = "records/corpus/"


def read_report(catalog: GeneratorCatalog, digest: str) -> AdapterReport:
    """The report of a stored adapter; ArtifactError, BaseModelError where it or its base is not there or is damaged."""
    artifact = AdapterStore(catalog.objects).get(digest)
    spec = catalog.base(artifact.provenance.base).spec
    lora = artifact.lora.model_copy(update={"last_layers": catalog.config.lora.last_layers})
    layout = AdapterLayout.of(spec, lora, spec.hidden_size)
    changes = _changes(artifact, layout)
    norms = tuple(
        ModuleNorm(
            module=slot.module, role=slot.role, layer=int((re.findall(r"\.(\d+)\.", slot.module) or ["0"])[0]),
            norm=change_norm(*changes[slot.module]),
        )
        for slot in layout.slots if slot.factor == "A"
    )  # fmt: skip
    skipped: list[SkippedAdapter] = []
    others = list(_others(catalog, artifact, layout, skipped))
    catalog.check()  # what went away while it was read looks like a store without a corpus
    return AdapterReport(id=digest, norms=norms, nearest=_nearest(changes, others), skipped=tuple(skipped))


def _nearest(changes: Factors, others: list[tuple[AdapterArtifact, Factors]]) -> tuple[Neighbour, ...]:
    if not others:
        return ()
    distances = [float(value) for value in relative_distances([changes], [of for _, of in others])[0]]
    ranked = sorted(zip(distances, (other for other, _ in others), strict=True), key=lambda pair: pair[0])
    return tuple(
        Neighbour(
            id=other.digest, base=other.provenance.base, task=other.provenance.task, prompt=other.provenance.prompt,
            distance=distance,
        )
        for distance, other in ranked[:NUM_NEAREST]
    )  # fmt: skip


def _others(
    catalog: GeneratorCatalog, artifact: AdapterArtifact, layout: AdapterLayout, skipped: list[SkippedAdapter]
) -> Iterator[tuple[AdapterArtifact, Factors]]:
    """Trained adapters of this layout with their changes, each content once, not the adapter's own.

    They are the last ones of every run on record, of at most MAX_COMPARED runs. What cannot be compared is told.
    """
    seen = {_content(artifact)}
    for name, digest in _recorded(catalog, skipped):
        try:
            other = AdapterStore(catalog.objects).get(digest)
            if not _is_of(other, layout) or _content(other) in seen:
                continue
            seen.add(_content(other))
            changes = _changes(other, layout)
        except (ArtifactError, StoreError) as error:
            catalog.check()  # a store that is away is no damaged adapter
            skipped.append(SkippedAdapter(id=digest, run=name, reason=str(error)))
            continue
        if not any(change_norm(a, b) > 0 for a, b in changes.values()):
            skipped.append(SkippedAdapter(id=digest, run=name, reason="it changes nothing, so nothing is near it"))
            continue
        yield other, changes


def _recorded(catalog: GeneratorCatalog, skipped: list[SkippedAdapter]) -> Iterator[tuple[str, str]]:
    """(run, digest of its last adapter) of the runs on record."""
    for info in islice(catalog.objects.list(_RECORDS), MAX_COMPARED):
        name = PurePosixPath(info.key).stem
        try:
            record = Records(catalog.objects).get("corpus", name)
        except StoreError as error:
            catalog.check()
            skipped.append(SkippedAdapter(id="", run=name, reason=str(error)))
            continue
        if record is None:  # deleted since it was listed
            continue
        digests = record.get("digests")
        if isinstance(digests, list) and digests and isinstance(digests[-1], str):
            yield name, digests[-1]
        else:
            reason = f"record {info.key!r} names no adapter; delete it to do the work again"
            skipped.append(SkippedAdapter(id="", run=name, reason=reason))


def _is_of(artifact: AdapterArtifact, layout: AdapterLayout) -> bool:
    try:
        layout.check_shapes({key: tuple(tensor.shape) for key, tensor in artifact.tensors.items()}, "")
    except LayoutError:
        return False
    return True


def _changes(artifact: AdapterArtifact, layout: AdapterLayout) -> Factors:
    """The factors with the scale lora_alpha / r in B, so that their products are what is added to the weights."""
    scale = artifact.lora.lora_alpha / artifact.lora.r
    return {module: (a, scale * b) for module, (a, b) in artifact.factors(layout).items()}


def _content(artifact: AdapterArtifact) -> str:
    """Names an adapter by its tensors and scale alone: the same one for two bases has two digests and one content."""
    scale = {"r": artifact.lora.r, "lora_alpha": float(artifact.lora.lora_alpha)}
    return dataclasses.replace(artifact, config=scale).digest
