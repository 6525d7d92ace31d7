"""OralClient and AsyncOralClient: the flows of flows.py, driven over httpx.

A client keeps one connection pool; close it, or use it in a `with`. The token goes to the service's own address only:
httpx drops it where a download is redirected to an object store.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from oral_ray.client import flows
from oral_ray.client.flows import Call, Flow, Patience, Pause, Reply
from oral_ray.client.wire import Adapter, Base, Job, Release
from oral_ray.errors import ServiceError

try:
    import httpx
except ImportError:  # the client is an extra; the command line says so when it is asked for
    httpx = None

TOKEN_VARIABLE = "ORAL_TOKEN"
T = TypeVar("T")


class OralClient:
    """The service at an address. `timeout_s` bounds every operation as a whole, waits and retries included."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 120.0, transport: Any = None) -> None:
        self._timeout_s = timeout_s
        self._http: Any = _needed().Client(transport=transport, **_settings(url, token, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self, prompt: str, base: str, seed: int = 0, *, r: int | None = None, lora_alpha: float | None = None,
        target_modules: Sequence[str] | None = None, strength: float = 1.0,
    ) -> Adapter:  # fmt: skip
        """Generate an adapter for a base version, or get the one that the store has; waits for a job where there is one."""
        request = _request(prompt, base, seed, r, lora_alpha, target_modules, strength)
        return self._run(flows.generate(request, self._patience()))

    def wait(self, job: Job) -> Adapter:
        """The adapter of a job, once it is there."""
        return self._run(flows.wait_for(job, self._patience()))

    def job(self, job_id: str) -> Job:
        """The state of a job."""
        return self._run(flows.get_job(job_id, self._patience()))

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        self._run(flows.cancel_job(job_id, self._patience()))

    def get(self, adapter_id: str) -> Adapter:
        """A stored adapter by its id."""
        return self._run(flows.get_adapter(adapter_id, self._patience()))

    def list(self) -> list[Adapter]:
        """All stored adapters."""
        return self._run(flows.list_adapters(self._patience()))

    def bases(self) -> tuple[Base, ...]:
        """The base versions that may be named."""
        return self._run(flows.list_bases(self._patience()))

    def releases(self, base: str | None = None) -> tuple[Release, ...]:
        """The latest release of every base, or all of one, newest first."""
        return self._run(flows.list_releases(base, self._patience()))

    def download(self, adapter_id: str, folder: str | Path) -> Path:
        """Write an adapter as a PEFT folder.

        ArtifactError, and nothing is written, when its digest is not its id or the folder holds something else.
        """
        return self._run(flows.download(adapter_id, Path(folder), self._patience()))

    def _patience(self) -> Patience:
        return Patience(self._timeout_s)

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = _reply(self._http.request(**_arguments(step)))
                except _needed().TransportError as error:
                    reply = _no_reply(error)
                step = flow.send(reply)
        except StopIteration as end:
            return end.value


class AsyncOralClient:
    """OralClient with coroutines."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 120.0, transport: Any = None) -> None:
        self._timeout_s = timeout_s
        self._http: Any = _needed().AsyncClient(transport=transport, **_settings(url, token, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self, prompt: str, base: str, seed: int = 0, *, r: int | None = None, lora_alpha: float | None = None,
        target_modules: Sequence[str] | None = None, strength: float = 1.0,
    ) -> Adapter:  # fmt: skip
        """Generate an adapter for a base version, or get the one that the store has; waits for a job where there is one."""
        request = _request(prompt, base, seed, r, lora_alpha, target_modules, strength)
        return await self._run(flows.generate(request, self._patience()))

    async def wait(self, job: Job) -> Adapter:
        """The adapter of a job, once it is there."""
        return await self._run(flows.wait_for(job, self._patience()))

    async def job(self, job_id: str) -> Job:
        """The state of a job."""
        return await self._run(flows.get_job(job_id, self._patience()))

    async def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        await self._run(flows.cancel_job(job_id, self._patience()))

    async def get(self, adapter_id: str) -> Adapter:
        """A stored adapter by its id."""
        return await self._run(flows.get_adapter(adapter_id, self._patience()))

    async def list(self) -> list[Adapter]:
        """All stored adapters."""
        return await self._run(flows.list_adapters(self._patience()))

    async def bases(self) -> tuple[Base, ...]:
        """The base versions that may be named."""
        return await self._run(flows.list_bases(self._patience()))

    async def releases(self, base: str | None = None) -> tuple[Release, ...]:
        """The latest release of every base, or all of one, newest first."""
        return await self._run(flows.list_releases(base, self._patience()))

    async def download(self, adapter_id: str, folder: str | Path) -> Path:
        """Write an adapter as a PEFT folder.

        ArtifactError, and nothing is written, when its digest is not its id or the folder holds something else.
        """
        return await self._run(flows.download(adapter_id, Path(folder), self._patience()))

    def _patience(self) -> Patience:
        return Patience(self._timeout_s)

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = _reply(await self._http.request(**_arguments(step)))
                except _needed().TransportError as error:
                    reply = _no_reply(error)
                step = flow.send(reply)
        except StopIteration as end:
            return end.value


def _needed() -> Any:
    if httpx is None:
        raise ServiceError("the client needs httpx; pip install 'oral-ray[client]'")
    return httpx


def _settings(url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ServiceError(f"{url!r} is no address of a service; it starts with http:// or https://")
    token = token if token is not None else os.environ.get(TOKEN_VARIABLE, "")
    if not token.isascii() or any(char.isspace() for char in token):
        raise ServiceError(f"the token holds white space or what is no ASCII; check {TOKEN_VARIABLE}")
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout_s, "follow_redirects": True}


def _request(
    prompt: str, base_id: str, seed: int, r: int | None, lora_alpha: float | None, targets: Sequence[str] | None,
    scale: float,
) -> dict[str, Any]:  # fmt: skip
    """The body: what was not asked for is left out, so that the service's defaults hold."""
    if isinstance(targets, str):
        raise ServiceError(f"target_modules is the text {targets!r}; give a list of names, such as ['q', 'v']")
    chosen: dict[str, Any] = {"r": r, "lora_alpha": lora_alpha}
    chosen["target_modules"] = None if targets is None else list(targets)
    chosen["strength"] = scale if scale != 1.0 else None
    return {"prompt": prompt, "base": base_id, "seed": seed} | {k: v for k, v in chosen.items() if v is not None}


def _arguments(call: Call) -> dict[str, Any]:
    return {
        "method": call.method, "url": call.path, "headers": dict(call.headers), "params": dict(call.params),
        "json": call.body,
    }  # fmt: skip


def _reply(answer: Any) -> Reply:
    return Reply(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)


def _no_reply(error: Exception) -> Reply:
    return Reply(0, reason=" ".join(str(error).split()) or type(error).__name__)
