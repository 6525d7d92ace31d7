"""AdapterStore: adapters by digest, written once, checked on every read; and the tree that serving engines read.

`adapters/<digest>/` holds every artifact. `publish` copies one to `<publish_prefix>/<base>/<adapter_id>/`, which Ray
Serve LLM, vLLM, SGLang and LoRAX load without conversion; adapter_config.json is written last, ids are never reused.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save

from oral_ray.adapters.artifact import (
    CARD,
    CONFIG,
    PROVENANCE,
    WEIGHTS,
    AdapterArtifact,
    Provenance,
    parse_artifact,
    write_folder,
)
from oral_ray.config import LoraSettings
from oral_ray.errors import ArtifactError, MissingObjectError
from oral_ray.objects import Objects

logger = logging.getLogger(__name__)


class AdapterStore:
    """Artifacts in an object store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def put(self, artifact: AdapterArtifact) -> str:
        """Store an artifact (a no-op when it is there) and return its digest."""
        digest = artifact.digest
        if not self.has(digest):
            for name, data in artifact.files().items():
                self._objects.put_if_absent(f"{self.prefix(digest)}{name}", data)
        return digest

    def get(self, digest: str) -> AdapterArtifact:
        """The artifact of a digest; ArtifactError when what is stored is not what the digest names."""
        try:
            return self._read(self.prefix(digest), digest)
        except MissingObjectError:
            raise ArtifactError(f"no adapter {digest!r} in {self._objects.uri}; see oral-ray list") from None

    def has(self, digest: str) -> bool:
        """Whether an artifact is there, completely."""
        return self._objects.exists(f"{self.prefix(digest)}{CONFIG}")

    def about(self, digest: str) -> tuple[LoraSettings, Provenance]:
        """What an artifact is and where it came from; its weights are neither read nor checked."""
        try:
            files = {name: self._objects.get(self.prefix(digest) + name) for name in (CONFIG, PROVENANCE)}
        except MissingObjectError:
            raise ArtifactError(f"no adapter {digest!r} in {self._objects.uri}; see oral-ray list") from None
        artifact = parse_artifact(files | {WEIGHTS: save({})}, self.prefix(digest).rstrip("/"))
        return artifact.lora, artifact.provenance

    def list(self) -> Iterator[str]:
        """Digests of all complete artifacts."""
        for info in self._objects.list("adapters/"):
            digest, _, name = info.key.removeprefix("adapters/").partition("/")
            if name == CONFIG:
                yield digest

    def publish(self, digest: str, prefix: str, base_id: str, adapter_id: str) -> str:
        """Copy an artifact into the serving view and return its uri; ArtifactError when the id names another adapter."""
        artifact = self.get(digest)
        where = f"{prefix}/{base_id}/{adapter_id}/"
        files = artifact.files()
        files = {CARD: _card(artifact, adapter_id).encode(), **files}
        for name, data in files.items():
            if not self._objects.put_if_absent(where + name, data) and name == WEIGHTS:
                self._refuse_other(where, data)
        self._read(where, digest)
        return f"{self._objects.uri}/{where}".rstrip("/")

    def read_published(self, where: str, digest: str) -> AdapterArtifact:
        """The artifact of a published folder; ArtifactError when it is not what the digest names."""
        return self._read(f"{where}/", digest)

    def pull(self, digest: str, folder: Path) -> Path:
        """Write an artifact into a folder, digest checked, adapter_config.json last."""
        return write_folder(self.get(digest), folder)

    def _refuse_other(self, where: str, weights: bytes) -> None:
        """Before the marker is written: weights that lie there already must be the same."""
        if self._objects.get(where + WEIGHTS) != weights:
            raise ArtifactError(f"{self._objects.uri}/{where} holds another adapter's weights; ids are never reused")

    @staticmethod
    def prefix(digest: str) -> str:
        """The key prefix of an artifact."""
        return f"adapters/{digest}/"

    def _read(self, prefix: str, digest: str) -> AdapterArtifact:
        files = {name: self._objects.get(prefix + name) for name in (CONFIG, WEIGHTS, PROVENANCE)}
        artifact = parse_artifact(files, prefix.rstrip("/"))
        if artifact.digest != digest:
            raise ArtifactError(
                f"adapter at {self._objects.uri}/{prefix} has digest {artifact.digest[:16]}, expected {digest[:16]}; "
                "it was changed or damaged, delete it and publish it again"
            )
        return artifact


def _card(artifact: AdapterArtifact, adapter_id: str) -> str:
    p = artifact.provenance
    return (
        f"---\nlibrary_name: peft\nbase_model: {p.base}\ntags: [lora, oral-ray]\n---\n\n# {adapter_id}\n\n"
        f"LoRA adapter, made by oral_ray {p.code_version} (`{p.origin}`) for base `{p.base}` "
        f"(fingerprint `{p.base_fingerprint}`).\n\n- task: {p.task or '-'}\n- prompt: {p.prompt or '-'}\n"
        f"- seed: {p.seed}\n- generator: {p.generator or '-'}\n- digest: `{artifact.digest}`\n"
    )
