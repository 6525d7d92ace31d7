"""A LoRA resolver for vLLM: an adapter that vLLM does not know is fetched from the store, or made by the service.

    pip install 'oral-ray[vllm]'
    export VLLM_ALLOW_RUNTIME_LORA_UPDATING=true ORAL_URL=http://127.0.0.1:8000 ORAL_TOKEN=...   # or ORAL_STORE=s3://...
    vllm serve /models/smollm2-t3 --enable-lora --max-lora-rank 16

The `model` of a request may then be

    <digest>              an adapter id of 64 hexadecimal digits
    <adapter_id>          a published adapter of the base that is served
    prompt:<task>         the task in words; the service makes the adapter (needs ORAL_URL)

The base is the last part of the name that vLLM serves (`/models/smollm2-t3`: `smollm2-t3`), or the one that is released as
served under that name (`regenerate.served_names`). ORAL_BASE=ID says it outright, and with commas the further names that
the base is served under: ORAL_BASE=smollm2-t3,chat,/models/smollm2-t3. What is released for the base is taken by its
published name; an adapter by bare digest only when it names the base.

Interface: vLLM 0.14 (`vllm.lora.resolver`, `vllm.lora.request`); versions since 0.9 have the same, and newer ones replace
`lora_int_id` by a counter of their own.
"""

import asyncio
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.client import OralClient
from oral_ray.config import IDENTIFIER
from oral_ray.errors import ArtifactError, MissingObjectError, ReleaseError, ServiceError
from oral_ray.local.packages import cache_folder
from oral_ray.objects import Objects, open_objects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.releases import ReleaseStore

logger = logging.getLogger(__name__)
NAME = "oral_ray"
PROMPT = "prompt:"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Source(Protocol):
    """Where adapters come from."""

    def digest_of(self, base: str, name: str) -> str | None:
        """The digest that a published name or a prompt stands for; None when there is no such adapter."""
        ...

    def served_as(self, served_name: str) -> list[str]:
        """The ids of the bases that are released as served under a name."""
        ...

    def fetch(self, digest: str, folder: Path) -> None:
        """Write the adapter into a folder, digest checked; MissingObjectError when there is none."""
        ...


class StoreSource:
    """Adapters straight from an object store; prompts need the service."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def digest_of(self, base: str, name: str) -> str | None:
        if name.startswith(PROMPT):
            logger.warning("no service to generate %r with; set ORAL_URL", name)
            return None
        try:
            return ReleaseStore(self._objects).digest_of(f"{base}/{name}")
        except ReleaseError:
            return None

    def served_as(self, served_name: str) -> list[str]:
        return ReleaseStore(self._objects).served_as(served_name)

    def fetch(self, digest: str, folder: Path) -> None:
        store = AdapterStore(self._objects)
        if not self._objects.exists(f"{store.prefix(digest)}adapter_config.json"):
            raise MissingObjectError(f"no adapter {digest} in {self._objects.uri}")
        store.pull(digest, folder)


class ServiceSource:
    """Adapters from the generation service, made when a prompt asks for one."""

    def __init__(self, client: OralClient) -> None:
        self._client = client

    def digest_of(self, base: str, name: str) -> str | None:
        if name.startswith(PROMPT):
            try:
                return self._client.generate(name.removeprefix(PROMPT), base).id
            except ServiceError as error:
                if error.status != 404:
                    raise
                logger.warning("%s", error)  # the service has no such base
                return None
        released = (adapter for release in self._client.releases(base) for adapter in release.adapters)
        return next((adapter.digest for adapter in released if adapter.adapter_id == name), None)

    def served_as(self, served_name: str) -> list[str]:
        return list(dict.fromkeys(r.base for r in self._client.releases() if r.served_name == served_name))

    def fetch(self, digest: str, folder: Path) -> None:
        try:
            self._client.download(digest, folder)
        except ServiceError as error:
            raise MissingObjectError(str(error)) if error.status == 404 else error from None


class OralResolver:
    """vLLM's LoRAResolver over a source, with a folder of adapters by digest.

    Returns None for what is not there; raises OralError where the source fails, since that is not the same.
    """

    def __init__(self, source: Source, folder: Path, base: str | None = None) -> None:
        """`base` is ORAL_BASE: the id of the served base, and after commas further names that it is served under."""
        self._source, self._folder = source, folder
        self._names = [name.strip() for name in (base or "").split(",") if name.strip()]

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """A LoRARequest for an adapter by digest, published name or prompt."""
        return await asyncio.to_thread(self._resolve, base_model_name, lora_name)

    def _resolve(self, base_model_name: str, lora_name: str) -> Any:
        is_prompt = lora_name.startswith(PROMPT)
        if not (is_prompt or re.fullmatch(IDENTIFIER, lora_name)):
            return None
        is_digest = _DIGEST.fullmatch(lora_name) is not None
        digest = lora_name if is_digest else self._digest_of(base_model_name, lora_name)
        if digest is None:
            return None
        try:
            folder = self._fetched(digest)
        except MissingObjectError:
            return None
        if is_digest and not self._is_for(base_model_name, digest, folder):
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(lora_name=lora_name, lora_int_id=stable_id(digest), lora_path=str(folder))

    def _digest_of(self, base_model_name: str, lora_name: str) -> str | None:
        """What a published name or a prompt stands for, on the base that is served."""
        for base in self._bases(base_model_name):
            if re.fullmatch(IDENTIFIER, base) and (digest := self._source.digest_of(base, lora_name)) is not None:
                return digest
        return None

    def _bases(self, base_model_name: str) -> Iterator[str]:
        """Ids that the served base may have, the likely one first."""
        if self._names:
            yield self._names[0]
        else:
            yield _last_part(base_model_name)
            yield from self._source.served_as(base_model_name)

    def _is_for(self, base_model_name: str, digest: str, folder: Path) -> bool:
        """Whether an adapter names the base that is served, by the base's id or by a name that it is served under."""
        artifact = read_folder(folder)
        named = {artifact.provenance.base_id, str(artifact.config.get("base_model_name_or_path"))} - {""}
        served = {base_model_name, *(self._names or [_last_part(base_model_name)])}
        if named & served or (not self._names and named & {*self._source.served_as(base_model_name)}):
            return True
        logger.warning(
            "adapter %s was made for base %s, and %s is served; set ORAL_BASE to the id of what is served",
            digest[:12], " or ".join(sorted(named)), " or ".join(sorted(served)),
        )  # fmt: skip
        return False

    def _fetched(self, digest: str) -> Path:
        """The adapter's folder, filled when it is not there, or is not what its name says."""
        folder = self._folder / digest
        if _digest_of(folder) == digest:
            return folder
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetch-") as name:
            self._source.fetch(digest, Path(name) / "adapter")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                (Path(name) / "adapter").rename(folder)
            except OSError:  # another process was first
                if _digest_of(folder) != digest:
                    raise
        return folder


def register(environment: Mapping[str, str] = os.environ) -> None:
    """vLLM's entry point, called in each of its processes: registers the resolver where ORAL_URL or ORAL_STORE is set."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if url := environment.get("ORAL_URL"):
        source: Source = ServiceSource(OralClient(url, environment.get("ORAL_TOKEN")))
    elif uri := environment.get("ORAL_STORE"):
        source = StoreSource(open_objects(uri))
    else:
        logger.info("oral_ray resolves no adapters: neither ORAL_URL nor ORAL_STORE is set")
        return
    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    folder = Path(environment.get("ORAL_CACHE") or cache_folder() / "adapters")
    LoRAResolver.register(OralResolver)
    LoRAResolverRegistry.register_resolver(NAME, OralResolver(source, folder, environment.get("ORAL_BASE")))


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def stable_id(digest: str) -> int:
    """The same positive number in every process; below 2**31, since vLLM keeps ids as int32."""
    return int(digest[:16], 16) % (2**31 - 1) + 1


def _digest_of(folder: Path) -> str | None:
    try:
        artifact: AdapterArtifact = read_folder(folder)
    except (ArtifactError, OSError):
        return None
    return artifact.digest
