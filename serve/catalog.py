"""What can be read from the store: bases, tasks, releases, served models, adapters and their files.

Lists that need many reads are kept for `serve.refresh_s`. Everything here is plain and blocking; routes call it in threads.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from oral_ray.adapters.distance import change_norm, relative_distances
from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord, discover
from oral_ray.config import Config
from oral_ray.errors import ArtifactError, MissingObjectError, OralError
from oral_ray.service import Stock
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records
from oral_ray.store.refreshed import Refreshed
from oral_ray.store.releases import ReleaseStore
from oral_ray.tasks import load_task
from serve.schema import (
    AdapterInfo,
    AdapterPage,
    AdapterReport,
    BaseInfo,
    BaseList,
    LoraChoice,
    ModelInfo,
    ModelList,
    ModuleNorm,
    Neighbour,
    ReleasedInfo,
    ReleaseInfo,
    ReleaseList,
    TaskInfo,
    TaskList,
)

NUM_PROMPTS, NUM_NEAREST, MAX_COMPARED, PIECE_BYTES = 5, 5, 500, 8_000_000
_SHOWN: Any = dict.fromkeys(ReleaseInfo.model_fields, True) | {"adapters": {"__all__": {*ReleasedInfo.model_fields}}}


class Catalog:
    """Reads of one store."""

    def __init__(self, config: Config, stock: Stock) -> None:
        self._config, self._stock = config, stock
        self._adapters, self._releases = AdapterStore(stock.objects), ReleaseStore(stock.objects)
        age_s = config.serve.refresh_s
        self._bases: Refreshed[str, BaseList] = Refreshed(self._read_bases, age_s)
        self._models: Refreshed[str, ModelList] = Refreshed(self._read_models, age_s)
        self._latest: Refreshed[str, ReleaseList] = Refreshed(self._read_releases, age_s)
        self._tasks: Refreshed[str, TaskList] = Refreshed(self._read_tasks, 3600.0)
        self._report = lru_cache(maxsize=256)(self._read_report)  # content never changes

    def bases(self) -> BaseList:
        """Every complete base version."""
        return self._bases.get("")

    def tasks(self) -> TaskList:
        """The tasks of the configuration, with wordings."""
        return self._tasks.get("")

    def models(self) -> ModelList:
        """Bases and published adapters."""
        return self._models.get("")

    def releases(self, base_id: str) -> ReleaseList:
        """The latest release of every base and name, or all of one base, newest first of each name."""
        return self._latest.get(base_id)

    def adapters(self, after: str, limit: int) -> AdapterPage:
        """The adapters whose ids come after `after`; what is damaged is left out."""
        digests = list(islice((digest for digest in self._adapters.list() if digest > after), limit + 1))
        items = []
        for digest in digests[:limit]:
            try:
                info = AdapterInfo.of(digest, self._stock.uri(digest), *self._stock.about(digest))
                items.append(info.used(self.released_as(digest)))
            except ArtifactError:
                continue
        return AdapterPage(items=tuple(items), next=digests[limit - 1] if len(digests) > limit else None)

    def num_bytes(self, digest: str, name: str) -> int:
        """The size of an adapter's file; ArtifactError when there is none."""
        try:
            return self._stock.objects.num_bytes(f"{AdapterStore.prefix(digest)}{name}")
        except MissingObjectError:
            self._stock.check()
            raise ArtifactError(
                f"no adapter {digest!r} in {self._stock.objects.uri}; ids are in /v1/adapters"
            ) from None

    def link(self, digest: str, name: str) -> str | None:
        """Where the store itself gives an adapter's file away, None where it does not or `serve.presign_s` is 0."""
        valid_s = self._config.serve.presign_s
        return self._stock.objects.link(f"{AdapterStore.prefix(digest)}{name}", valid_s) if valid_s else None

    def read(self, digest: str, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of an adapter's file, in pieces."""
        key = f"{AdapterStore.prefix(digest)}{name}"
        for at in range(start, stop, PIECE_BYTES):
            yield self._stock.objects.range(key, at, min(PIECE_BYTES, stop - at))

    def report(self, digest: str) -> AdapterReport:
        """Norms by module and the nearest adapters of the corpus."""
        return self._report(digest)

    def _read_bases(self, _: str) -> BaseList:
        records, _skipped = discover(self._stock.objects, self._config.bases.prefix, quiet_period_s=0.0)
        return BaseList(items=tuple(self._base_info(record) for record in records))

    def _base_info(self, record: BaseRecord) -> BaseInfo:
        choices = [
            LoraChoice(r=lora.r, lora_alpha=lora.lora_alpha, target_modules=lora.target_modules)
            for lora in self._stock.choices(record)
        ]
        return BaseInfo(
            id=record.id, model_type=record.spec.model_type, num_layers=record.spec.num_layers,
            hidden_size=record.spec.hidden_size, architecture=record.spec.digest, fingerprint=record.fingerprint,
            refusal=self._stock.refusal(record), lora=tuple(choices),
        )  # fmt: skip

    def _read_tasks(self, _: str) -> TaskList:
        items = []
        for task_id in self._config.tasks.ids:
            try:
                task = load_task(task_id)
            except OralError:
                continue  # a source that is not installed here: no example can be shown
            items.append(TaskInfo(id=task.id, labels=task.labels, prompts=task.prompts[:NUM_PROMPTS]))
        return TaskList(items=tuple(items))

    def _read_releases(self, base_id: str) -> ReleaseList:
        items = []
        for base in [base_id] if base_id else self._releases.bases():
            for name in self._releases.names(base):
                numbers = sorted(self._releases.sequence(base, name), reverse=True)
                items += [self._release_info(base, name, seq) for seq in (numbers if base_id else numbers[:1])]
        return ReleaseList(items=tuple(items))

    def _release_info(self, base: str, name: str, seq: int) -> ReleaseInfo:
        release = self._releases.get(base, name, seq)
        shown: dict[str, Any] = release.model_dump(include=_SHOWN) | {"sequence": seq}
        for adapter, row in zip(release.adapters, shown["adapters"], strict=True):
            row["uri"] = adapter.uri_in(self._stock.objects.uri)
        return ReleaseInfo.model_validate(shown)

    def released_as(self, digest: str) -> ReleasedInfo | None:
        """How an adapter is released at present: its task, and the arm that won; None where it is not."""
        released = (adapter for release in self.releases("").items for adapter in release.adapters)
        return next((adapter for adapter in released if adapter.digest == digest), None)

    def _read_models(self, _: str) -> ModelList:
        data = [ModelInfo(id=base.id, created=0) for base in self.bases().items if not base.refusal]
        for info in self._stock.objects.list(f"{self._config.regenerate.publish_prefix}/"):
            path = PurePosixPath(info.key)
            if path.name == "adapter_config.json" and len(path.parts) >= 3:
                data.append(ModelInfo(id=f"{path.parts[-3]}:{path.parts[-2]}", created=int(info.modified_s)))
        return ModelList(data=tuple(data))

    def _read_report(self, digest: str) -> AdapterReport:
        artifact = self._adapters.get(digest)
        spec = self._stock.base(artifact.provenance.base).spec
        lora = artifact.lora.model_copy(update={"last_layers": self._config.lora.last_layers})
        layout = AdapterLayout.of(spec, lora, spec.hidden_size)
        factors, scale = artifact.factors(layout), artifact.lora.lora_alpha / artifact.lora.r
        norms = tuple(
            ModuleNorm(
                module=slot.module, role=slot.role, layer=int((re.findall(r"\.(\d+)\.", slot.module) or ["0"])[0]),
                norm=scale * change_norm(*factors[slot.module]),
            )
            for slot in layout.slots if slot.factor == "A"
        )  # fmt: skip
        return AdapterReport(id=digest, norms=norms, nearest=self._nearest(digest, factors, layout))

    def _nearest(self, digest: str, factors: Factors, layout: AdapterLayout) -> tuple[Neighbour, ...]:
        """Trained adapters of the store by distance: the last one of every run on record, of at most so many runs."""
        found = []
        for record in islice(Records(self._stock.objects).all("corpus"), MAX_COMPARED):
            other = self._adapters.get(record["digests"][-1])
            try:
                found.append((other, other.factors(layout)))
            except ArtifactError:
                continue  # of another layout
        if not found:
            return ()
        distances = relative_distances([factors], [of for _, of in found])[0]
        ranked = sorted(zip(distances, (other for other, _ in found), strict=True), key=lambda pair: float(pair[0]))
        return tuple(
            Neighbour(
                id=other.digest, base=other.provenance.base, task=other.provenance.task,
                prompt=other.provenance.prompt, distance=float(distance),
            )
            for distance, other in ranked[:NUM_NEAREST]
        )  # fmt: skip


def parse_range(header: str, num_bytes: int) -> tuple[int, int] | None:
    """The [start, stop) that a Range header (RFC 9110) asks for, None for the whole file; IndexError past its end.

    A header of another form, or with several ranges, asks for the whole file.
    """
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:  # the last n bytes
        start, stop = max(0, num_bytes - int(last)), num_bytes
    else:
        start, stop = int(first), min(num_bytes, int(last) + 1 if last else num_bytes)
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise IndexError(header)
    return start, stop
