"""Releases: which adapters are current for a base. Append-only: `releases/<base>/<seq>.json`, latest = highest seq."""

import json
import re

from pydantic import BaseModel, ConfigDict, ValidationError

from oral_ray.config import canonical_json
from oral_ray.errors import ReleaseError
from oral_ray.objects import Objects


class ReleasedAdapter(BaseModel):
    """One published adapter: which arm won the gate, with what validation score, and where it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    arm: str
    adapter_id: str
    digest: str
    uri: str
    score: float
    scores: dict[str, float]


class Release(BaseModel):
    """All adapters published for one base version at once, with their lineage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_fingerprint: str
    generator: str
    recipe: str
    adapters: tuple[ReleasedAdapter, ...]


class ReleaseStore:
    """Releases in an object store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def sequence(self, base_id: str) -> list[int]:
        """The numbers of a base's releases, ascending."""
        names = [info.key.rpartition("/")[2] for info in self._objects.list(f"releases/{base_id}/")]
        return sorted(int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{8}\.json", name))

    def bases(self) -> list[str]:
        """The ids of all bases with a release."""
        return sorted({info.key.split("/")[1] for info in self._objects.list("releases/")})

    def digest_of(self, name: str) -> str:
        """The digest of a published adapter by `BASE/ADAPTER_ID`; ReleaseError lists what the base has."""
        base_id, _, adapter_id = name.partition("/")
        known: dict[str, str] = {}
        for seq in self.sequence(base_id):
            known |= {adapter.adapter_id: adapter.digest for adapter in self.get(base_id, seq).adapters}
        if adapter_id not in known:
            raise ReleaseError(f"no published adapter {name!r}; base {base_id!r} has {', '.join(known) or 'none'}")
        return known[adapter_id]

    def get(self, base_id: str, seq: int) -> Release:
        """One release."""
        try:
            return Release.model_validate(json.loads(self._objects.get(_key(base_id, seq))))
        except (ValueError, ValidationError) as error:
            raise ReleaseError(f"release {seq} of base {base_id!r} is damaged: {error}") from None

    def latest(self, base_id: str) -> Release | None:
        """The release with the highest number, or None."""
        numbers = self.sequence(base_id)
        return self.get(base_id, numbers[-1]) if numbers else None

    def append(self, release: Release) -> int:
        """Add a release and return its number; an equal latest release is not added again."""
        data = canonical_json(release).encode()
        while True:
            numbers = self.sequence(release.base)
            if numbers and self.get(release.base, numbers[-1]) == release:
                return numbers[-1]
            number = numbers[-1] + 1 if numbers else 1
            if self._objects.put_if_absent(_key(release.base, number), data):
                return number


def _key(base_id: str, seq: int) -> str:
    return f"releases/{base_id}/{seq:08d}.json"
