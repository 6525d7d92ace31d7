"""AdapterStore: adapters by digest, written once, checked on every read; and the tree that serving engines read.

`adapters/<digest>/` holds every artifact. `publish` copies one to `<publish_prefix>/<base>/<adapter_id>/`, which Ray
Serve LLM, vLLM, SGLang and LoRAX load without conversion; adapter_config.json is written last, ids are never reused.

`put_folder`, `publish` and `pull` move adapters of any size through files, in the store's parts, and so does `put` with one
that is sampled in pieces; `get`, and `put` of any other, hold one in memory. Many at once:
`in_parallel(objects, store.put_folder, folders)`.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oral_ray.adapters.artifact import (
    CARD,
    CONFIG,
    PROVENANCE,
    WEIGHTS,
    AdapterArtifact,
    Provenance,
    parse_about,
    parse_artifact,
    read_about,
    read_folder,
)
from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.adapters.streamed import arriving, folder_digest
from oral_ray.config import LoraSettings, canonical_json
from oral_ray.errors import ArtifactError, MissingObjectError
from oral_ray.objects import Objects, check_key
from oral_ray.store.signing import SIGNATURE, sign_folder, verify_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Use:
    """What an adapter is published for: its provenance as of this base, the task and the arm that won its gate."""

    provenance: Provenance
    task: str = ""
    arm: str = ""


class AdapterStore:
    """Artifacts in an object store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def put(self, adapter: AdapterArtifact | SampledAdapter) -> str:
        """Store an adapter and return its digest: a no-op when it is there, and what is there damaged is replaced.

        One that is streamed goes through a temporary folder and is never in memory as a whole. ArtifactError where a
        sampled adapter has values that are not finite.
        """
        if isinstance(adapter, SampledAdapter):
            if adapter.is_streamed:
                return self._put_streamed(adapter)
            adapter = adapter.artifact()
        digest, files = adapter.digest, adapter.files()
        prefix = self.prefix(digest)
        if not self.has(digest):
            created = [self._objects.put_if_absent(prefix + name, data) for name, data in files.items()]
            if all(created):
                return digest
        if not self.is_whole(digest):
            for name, data in files.items():
                self._objects.put(prefix + name, data)
        return digest

    def put_folder(self, folder: Path) -> str:
        """Store a PEFT folder (a no-op when it is there) and return its digest; ArtifactError where it is damaged."""
        weights = folder / WEIGHTS
        before = _stamp(weights)
        digest = folder_digest(folder)
        self._put_folder(folder, digest, before)
        return digest

    def _put_streamed(self, adapter: SampledAdapter) -> str:
        with tempfile.TemporaryDirectory(prefix="oral-put-") as name:
            folder = Path(name) / "adapter"
            digest = adapter.write(folder)
            if not self._put_folder(folder, digest, _stamp(folder / WEIGHTS)) and not self.is_whole(digest):
                where = self.prefix(digest)
                self._objects.upload(folder / WEIGHTS, where + WEIGHTS)
                for file in (PROVENANCE, CONFIG):
                    self._objects.put(where + file, (folder / file).read_bytes())
        return digest

    def _put_folder(self, folder: Path, digest: str, before: tuple[int, int] | None) -> bool:
        """Whether the folder, whose weights file had the stamp `before`, was stored; False when its adapter is there."""
        config, provenance = read_about(folder)
        weights, where = folder / WEIGHTS, self.prefix(digest)
        # Who creates the first file knows without asking that the marker, which is the last, is not there.
        is_first = self._objects.put_if_absent(where + PROVENANCE, canonical_json(provenance).encode())
        if not is_first and self.has(digest):
            return False
        self._objects.upload(weights, where + WEIGHTS)
        if _stamp(weights) != before:
            raise ArtifactError(f"{weights} was changed while it was stored; store it again when it is finished")
        self._objects.put_if_absent(where + CONFIG, canonical_json(config).encode())
        return True

    def get(self, digest: str) -> AdapterArtifact:
        """The artifact of a digest; ArtifactError when what is stored is not what the digest names."""
        if self._objects.cache is not None:
            with tempfile.TemporaryDirectory(prefix="oral-get-") as name:
                return read_folder(self.pull(digest, Path(name) / "adapter"))
        prefix = self.prefix(digest)
        try:
            files = {name: self._objects.get(prefix + name) for name in (CONFIG, WEIGHTS, PROVENANCE)}
        except MissingObjectError:
            raise ArtifactError(f"no adapter {digest!r} in {self._objects.uri}; see oral-ray list") from None
        artifact = parse_artifact(files, prefix.rstrip("/"))
        self._compare(prefix, artifact.digest, digest)
        return artifact

    def has(self, digest: str) -> bool:
        """Whether an artifact is there, completely."""
        return self._objects.exists(f"{self.prefix(digest)}{CONFIG}")

    def is_whole(self, digest: str) -> bool:
        """Whether an artifact is there and is what its digest says: it is read, its values are not looked at."""
        try:
            self.check(digest)
        except ArtifactError:
            return False
        return True

    def about(self, digest: str) -> tuple[LoraSettings, Provenance]:
        """What an artifact is and where it came from; its weights are neither read nor checked."""
        try:
            files = {name: self._objects.get(self.prefix(digest) + name) for name in (CONFIG, PROVENANCE)}
        except MissingObjectError:
            raise ArtifactError(f"no adapter {digest!r} in {self._objects.uri}; see oral-ray list") from None
        config, provenance = parse_about(files, self.prefix(digest).rstrip("/"))
        return AdapterArtifact(config, {}, provenance).lora, provenance

    def list(self) -> Iterator[str]:
        """Digests of all complete artifacts."""
        for info in self._objects.list("adapters/"):
            digest, _, name = info.key.removeprefix("adapters/").partition("/")
            if name == CONFIG:
                yield digest

    def publish(
        self,
        digest: str,
        prefix: str,
        base_id: str,
        adapter_id: str,
        private_key: Path | None = None,
        use: Use | None = None,
    ) -> str:
        """Copy an artifact into the serving view and return its uri; ArtifactError when the id names another adapter.

        The model card, which says the digest, is created first: so an id that two adapters want is one adapter's. With a
        private key the files are signed, before the marker; the first signature stays.
        """
        where = f"{prefix}/{base_id}/{adapter_id}/"
        with tempfile.TemporaryDirectory(prefix="oral-publish-") as name:
            folder = self.pull(digest, Path(name) / "adapter")
            use = use or Use(read_about(folder)[1])
            (folder / PROVENANCE).write_text(canonical_json(use.provenance), encoding="utf-8")
            card = _card(use, adapter_id, digest).encode()
            is_new = self._objects.put_if_absent(where + CARD, card)
            (folder / CARD).write_bytes(card if is_new else self._card_of(where, digest))
            is_whole = not is_new and self._objects.exists(where + CONFIG)
            if is_whole:
                self._check(where, digest)
            else:
                self._objects.upload(folder / WEIGHTS, where + WEIGHTS)
                self._objects.put_if_absent(where + PROVENANCE, (folder / PROVENANCE).read_bytes())
            if private_key is not None:
                sign_folder(folder, private_key)
                self._objects.put_if_absent(where + SIGNATURE, (folder / SIGNATURE).read_bytes())
            if not is_whole:
                self._objects.put_if_absent(where + CONFIG, (folder / CONFIG).read_bytes())
        return f"{self._objects.uri}/{where}".rstrip("/")

    def published_for(self, where: str) -> Provenance | None:
        """The provenance of a published folder, which says for which base it was released; None where there is none."""
        try:
            files = {name: self._objects.get(f"{where}/{name}") for name in (CONFIG, PROVENANCE)}
        except MissingObjectError:
            return None
        return parse_about(files, where)[1]

    def pull(self, digest: str, folder: Path) -> Path:
        """Write an artifact into a folder; the folder appears (or its marker) when the digest has been checked.

        ArtifactError where the folder holds something else than this adapter.
        """
        cache = self._objects.cache
        with arriving(folder, digest) as temporary:
            if cache is None:
                self._fetch(self.prefix(digest), digest, temporary)
            elif not cache.copy(f"adapter-{digest}", temporary, lambda kept: _is_whole(kept, digest)):
                self._fetch(self.prefix(digest), digest, temporary)
                cache.keep(f"adapter-{digest}", temporary)
        return folder

    def check(self, digest: str) -> None:
        """Read an artifact and compare its digest; ArtifactError where it is another one."""
        self._check(self.prefix(digest), digest)

    def check_published(self, where: str, digest: str, public_key: Path | None = None) -> None:
        """The same of a published folder, and that it was signed by a key."""
        self._check(f"{where}/", digest, public_key)

    def pull_published(self, where: str, digest: str, folder: Path, public_key: Path) -> Path:
        """Write a published adapter into a folder, with its card and signature, both digest and signature checked."""
        with arriving(folder, digest) as temporary:
            self._fetch(f"{where}/", digest, temporary, public_key)
        return folder

    def _check(self, prefix: str, digest: str, public_key: Path | None = None) -> None:
        with tempfile.TemporaryDirectory(prefix="oral-check-") as name:
            self._fetch(prefix, digest, Path(name), public_key)

    def _card_of(self, where: str, digest: str) -> bytes:
        """The card that lies there already; ArtifactError, before anything else is written, where it is another's."""
        card = self._objects.get(where + CARD)
        if digest not in card.decode(errors="replace"):
            raise ArtifactError(f"{self._objects.uri}/{where} holds another adapter; ids are never reused")
        return card

    def _fetch(self, prefix: str, digest: str, folder: Path, public_key: Path | None = None) -> None:
        try:
            for name in (CONFIG, PROVENANCE, *((CARD, SIGNATURE) if public_key else ())):
                (folder / name).write_bytes(self._objects.get(prefix + name))
            self._objects.download(prefix + WEIGHTS, folder / WEIGHTS)
        except MissingObjectError as error:
            raise ArtifactError(f"no adapter {digest!r}: {error}; see oral-ray list") from None
        read_about(folder)
        self._compare(prefix, folder_digest(folder), digest)
        if public_key is not None:
            verify_folder(folder, public_key, f"{self._objects.uri}/{prefix}".rstrip("/"))

    @staticmethod
    def prefix(digest: str) -> str:
        """The key prefix of an artifact."""
        return f"adapters/{check_key(digest)}/"

    def _compare(self, prefix: str, found: str, digest: str) -> None:
        if found != digest:
            raise ArtifactError(
                f"adapter at {self._objects.uri}/{prefix} has digest {found[:16]}, expected {digest[:16]}; "
                "it was changed or damaged; delete that folder, and the next run that needs it makes it again"
            )


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written; None where there is none."""
    return ((stat := path.stat()).st_mtime_ns, stat.st_size) if path.is_file() else None


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        read_about(folder)
        return folder_digest(folder) == digest
    except ArtifactError:
        return False


def _card(use: Use, adapter_id: str, digest: str) -> str:
    p = use.provenance
    name = p.served_name or p.base
    base_model = (
        name if re.fullmatch(r"[A-Za-z0-9][\w./-]*", name) else json.dumps(name)
    )  # what YAML reads as it stands
    made_for = f", made for `{p.source_base}` (fingerprint `{p.source_base_fingerprint}`)" if p.source else ""
    return (
        f"---\nlibrary_name: peft\nbase_model: {base_model}\ntags: [lora, oral-ray]\n---\n\n# {adapter_id}\n\n"
        f"LoRA adapter, made by oral_ray {p.code_version} (`{p.origin}`{made_for}) for base `{name}` "
        f"(fingerprint `{p.base_fingerprint}`).\n\n- task: {use.task or p.task or '-'}\n- released as: {use.arm or '-'}\n"
        f"- prompt: {p.prompt or '-'}\n- seed: {p.seed}\n- generator: {p.generator or '-'}\n- digest: `{digest}`\n"
    )
