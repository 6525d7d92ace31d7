"""Releases: which adapters are current for a base. Append-only: `releases/<base>/<seq>.json`, latest = highest seq."""

import json
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError

from oral_ray.errors import ReleaseError
from oral_ray.objects import Objects
from oral_ray.store.records import Journal


class ReleasedAdapter(BaseModel):
    """One published adapter: which arm won the gate, with what validation score, and where it is.

    `seed` is that of its sample or training, `code_version` the code that decided, `signer` whose signature lies beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    arm: str
    adapter_id: str
    digest: str
    uri: str
    score: float
    scores: dict[str, float]
    seed: int = 0
    code_version: str = ""
    signer: str = ""


class Release(BaseModel):
    """All adapters published for one base version at once, with their lineage: whatever else went into them.

    `generator` is its recipe, `generator_digest` is over its files, `corpus` names the shards that it was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_fingerprint: str
    generator: str
    recipe: str
    generator_digest: str = ""
    corpus: str = ""
    adapters: tuple[ReleasedAdapter, ...]


class ReleaseStore:
    """Releases in an object store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def sequence(self, base_id: str) -> list[int]:
        """The numbers of a base's releases, ascending."""
        return self._journal(base_id).numbers()

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
            return Release.model_validate(json.loads(self._journal(base_id).get(seq)))
        except (ValueError, ValidationError) as error:
            raise ReleaseError(f"release {seq} of base {base_id!r} is damaged: {error}") from None

    def latest(self, base_id: str) -> Release | None:
        """The release with the highest number, or None."""
        numbers = self.sequence(base_id)
        return self.get(base_id, numbers[-1]) if numbers else None

    def alias(self, base_id: str, name: str) -> int | None:
        """The number of the release that an alias means; `latest` is always the newest. None where there is none."""
        if name == "latest":
            return max(self.sequence(base_id), default=None)
        return next(iter(reversed(self.history(base_id, name))), None)

    def aliases(self, base_id: str) -> list[str]:
        """The names of a base's aliases, but for `latest`."""
        return sorted({info.key.split("/")[2] for info in self._objects.list(f"aliases/{base_id}/")})

    def history(self, base_id: str, name: str) -> list[int]:
        """Every release that an alias has meant, oldest first."""
        journal = self._aliases(base_id, name)
        try:
            return [int(json.loads(journal.get(number))["release"]) for number in journal.numbers()]
        except (ValueError, KeyError, TypeError):
            raise ReleaseError(f"an entry under {journal.key(0)[:-13]} is damaged; delete it") from None

    def set_alias(self, base_id: str, name: str, seq: int) -> None:
        """Let an alias mean a release, by an appended record; ReleaseError where there is no such release."""
        known = self.sequence(base_id)
        if seq not in known:
            raise ReleaseError(f"base {base_id!r} has no release {seq}; there are {known or 'none'}")
        if name == "latest":
            raise ReleaseError("alias 'latest' is always the newest release; take another name, such as prod")
        self._aliases(base_id, name).append({"release": seq}, unless=lambda _: self.alias(base_id, name) == seq)

    def roll_back(self, base_id: str, name: str) -> int:
        """Let an alias mean the newest release before its own that it has meant; ReleaseError where there is none."""
        history = self.history(base_id, name)
        earlier = [seq for seq in history if seq < history[-1]]
        if not earlier:
            raise ReleaseError(f"alias {name!r} of base {base_id!r} has meant no earlier release (history: {history})")
        self.set_alias(base_id, name, max(earlier))
        return max(earlier)

    def diff(self, base_id: str, old: int, new: int) -> list[str]:
        """What changed between two releases, a line a task."""
        before, after = ({a.task: a for a in self.get(base_id, seq).adapters} for seq in (old, new))
        lines = [f"- {task}  {before[task].adapter_id}" for task in sorted(before.keys() - after.keys())]
        lines += [f"+ {task}  {after[task].adapter_id}" for task in sorted(after.keys() - before.keys())]
        return lines + [
            f"~ {task}  {a.adapter_id} ({a.arm} {a.score:.3f}) -> {b.adapter_id} ({b.arm} {b.score:.3f})"
            for task in sorted(before.keys() & after.keys())
            if (a := before[task]).digest != (b := after[task]).digest
        ]

    def append(self, release: Release) -> int:
        """Add a release and return its number; an equal latest release is not added again."""
        return self._journal(release.base).append(release, unless=lambda seq: self.get(release.base, seq) == release)

    def amend(self, base_id: str, change: Callable[[Release | None], Release]) -> int:
        """Add what `change` makes of the latest release and return its number; an equal one is not added again.

        Two writers at once see each other's release: `change` is asked again about the one that was faster.
        """

        def changed(last: int) -> Release | None:
            before = self.get(base_id, last) if last else None
            after = change(before)
            return None if after == before else after

        return self._journal(base_id).amend(changed)

    def _aliases(self, base_id: str, name: str) -> Journal:
        return Journal(self._objects, f"aliases/{base_id}/{name}/")

    def _journal(self, base_id: str) -> Journal:
        return Journal(self._objects, f"releases/{base_id}/")
