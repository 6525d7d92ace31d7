"""What can be read from the store: bases, tasks, releases, served models, adapters and their files.

Lists that need many reads are kept for `serve.refresh_s`. Everything here is plain and blocking; routes call it in threads.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from oral_ray.bases.catalog import BaseRecord, discover
from oral_ray.config import Config
from oral_ray.errors import ArtifactError, MissingObjectError, OralError
from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.pipeline.own_tasks import Tasks
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.refreshed import Refreshed
from oral_ray.store.releases import ReleaseStore
from serve.report import read_report
from serve.schema import (
    AdapterInfo,
    AdapterPage,
    AdapterReport,
    BaseInfo,
    BaseList,
    LoraChoice,
    ModelInfo,
    ModelList,
    ReleasedInfo,
    ReleaseInfo,
    ReleaseList,
    TaskInfo,
    TaskList,
)

NUM_PROMPTS, MAX_REPORTS, PIECE_BYTES = 5, 256, 8_000_000
_SHOWN: Any = {field.alias or name: True for name, field in ReleaseInfo.model_fields.items()} | {
    "adapters": {"__all__": {*ReleasedInfo.model_fields}}
}


class Listings:
    """Reads of one store."""

    def __init__(self, config: Config, catalog: GeneratorCatalog) -> None:
        self._config, self._catalog = config, catalog
        self._adapters, self._releases = AdapterStore(catalog.objects), ReleaseStore(catalog.objects)
        age_s = config.serve.refresh_s
        self._bases: Refreshed[str, BaseList] = Refreshed(self._read_bases, age_s)
        self._models: Refreshed[str, ModelList] = Refreshed(self._read_models, age_s)
        self._latest: Refreshed[str, ReleaseList] = Refreshed(self._read_releases, age_s)
        self._tasks: Refreshed[str, TaskList] = Refreshed(self._read_tasks, 3600.0)
        self._reports: OrderedDict[str, AdapterReport] = OrderedDict()

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
                info = AdapterInfo.of(digest, self._catalog.uri(digest), *self._catalog.describe(digest))
                items.append(info.used(self.released_as(digest)))
            except ArtifactError:
                continue
        return AdapterPage(items=tuple(items), next=digests[limit - 1] if len(digests) > limit else None)

    def num_bytes(self, digest: str, name: str) -> int:
        """The size of an adapter's file; ArtifactError when there is none."""
        try:
            return self._catalog.objects.num_bytes(f"{AdapterStore.prefix(digest)}{name}")
        except MissingObjectError:
            self._catalog.check()
            raise ArtifactError(
                f"no adapter {digest!r} in {self._catalog.objects.uri}; ids are in /v1/adapters"
            ) from None

    def link(self, digest: str, name: str) -> str | None:
        """Where the store itself gives an adapter's file away, None where it does not or `serve.presign_s` is 0."""
        valid_s = self._config.serve.presign_s
        return self._catalog.objects.link(f"{AdapterStore.prefix(digest)}{name}", valid_s) if valid_s else None

    def read(self, digest: str, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) of an adapter's file, in pieces."""
        key = f"{AdapterStore.prefix(digest)}{name}"
        for at in range(start, stop, PIECE_BYTES):
            yield self._catalog.objects.range(key, at, min(PIECE_BYTES, stop - at))

    def report(self, digest: str) -> AdapterReport:
        """Norms by module and the nearest adapters of the corpus. One that left an adapter out is read anew each time."""
        report = self._reports.get(digest) or read_report(self._catalog, digest)
        if not report.skipped:
            self._reports[digest] = report
            while len(self._reports) > MAX_REPORTS:
                self._reports.popitem(last=False)
        return report

    def _read_bases(self, _: str) -> BaseList:
        records, _skipped = discover(self._catalog.objects, self._config.bases.prefix, quiet_period_s=0.0)
        return BaseList(items=tuple(self._base_info(record) for record in records))

    def _base_info(self, record: BaseRecord) -> BaseInfo:
        choices = [
            LoraChoice(r=lora.r, lora_alpha=lora.lora_alpha, target_modules=lora.target_modules)
            for lora in self._catalog.choices(record)
        ]
        return BaseInfo(
            id=record.id, model_type=record.spec.model_type, num_layers=record.spec.num_layers,
            hidden_size=record.spec.hidden_size, architecture=record.spec.digest, fingerprint=record.fingerprint,
            refusal=self._catalog.refusal(record), lora=tuple(choices),
        )  # fmt: skip

    def _read_tasks(self, _: str) -> TaskList:
        known, items = Tasks(self._catalog.objects, self._config.tasks.folders), []
        for task_id in self._config.tasks.ids:
            try:
                task = known.get(task_id)
            except OralError:
                continue  # a source that is not installed here: no example can be shown
            items.append(TaskInfo(id=task.id, labels=task.labels, prompts=task.prompts[:NUM_PROMPTS]))
        return TaskList(items=tuple(items))

    def _read_releases(self, base_id: str) -> ReleaseList:
        items = []
        for one in [base_id] if base_id else self._releases.bases():
            for name in self._releases.names(one):
                numbers = sorted(self._releases.sequence(one, name), reverse=True)
                items += [self._release_info(one, name, seq) for seq in (numbers if base_id else numbers[:1])]
        return ReleaseList(items=tuple(items))

    def _release_info(self, base_id: str, name: str, seq: int) -> ReleaseInfo:
        release = self._releases.get(base_id, name, seq)
        shown: dict[str, Any] = release.model_dump(include=_SHOWN) | {"sequence": seq}
        for adapter, row in zip(release.adapters, shown["adapters"], strict=True):
            row["uri"] = adapter.uri_in(self._catalog.objects.uri)
        return ReleaseInfo.model_validate(shown)

    def released_as(self, digest: str) -> ReleasedInfo | None:
        """How an adapter is released at present: its task, and the arm that won; None where it is not."""
        released = (adapter for release in self.releases("").items for adapter in release.adapters)
        return next((adapter for adapter in released if adapter.digest == digest), None)

    def _read_models(self, _: str) -> ModelList:
        data = [ModelInfo(id=base.id, created=0) for base in self.bases().items if not base.refusal]
        for info in self._catalog.objects.list(f"{self._config.regenerate.publish_prefix}/"):
            path = PurePosixPath(info.key)
            if path.name == "adapter_config.json" and len(path.parts) >= 3:
                data.append(ModelInfo(id=f"{path.parts[-3]}:{path.parts[-2]}", created=int(info.modified_s)))
        return ModelList(data=tuple(data))
