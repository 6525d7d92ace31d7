"""The HTTP interface: routes, what they need to be asked, what they answer. OpenAPI is at /openapi.json.

Every route needs a scope (serve/security.py); /healthz and /readyz need none. Every error is a Problem.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from oral_ray import __version__
from oral_ray.config import IDENTIFIER, Config
from serve.broker import Answer, Broker
from serve.edge import Edge
from serve.headers import etag_matches, parse_prefer, parse_range, range_applies
from serve.listings import Listings
from serve.metrics import IngressMetrics
from serve.problems import RefusedError, add_handlers, as_problems
from serve.schema import (
    AdapterInfo,
    AdapterPage,
    AdapterReport,
    BaseList,
    Digest,
    FileName,
    GenerateRequest,
    Health,
    JobId,
    JobInfo,
    ModelList,
    Problem,
    ReleaseList,
    TaskList,
)
from serve.security import Guard, Scope
from serve.static import add_page

T = TypeVar("T")
_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_bearer = HTTPBearer(auto_error=False, description="A token of serve.tokens; needed where the service has any.")


def build_api(
    config: Config, broker: Broker, listings: Listings, guard: Guard, metrics: IngressMetrics,
    scrape: Callable[[], str],
) -> FastAPI:  # fmt: skip
    """The FastAPI application of an ingress."""
    api = FastAPI(
        title="oral_ray", version=__version__, docs_url=None, redoc_url=None,
        redirect_slashes=False,  # a redirect would go to the Host that the client names
        description="LoRA adapters from prompts. A prompt and a base version give an adapter; equal requests the same one.",
    )  # fmt: skip
    api.add_middleware(Edge, config=config.serve, metrics=metrics)
    add_handlers(api)
    add_generation(api, broker, guard)
    add_reading(api, broker, listings, guard)
    add_operation(api, broker, guard, scrape)
    add_page(api)
    as_problems(api)
    return api


def add_generation(api: FastAPI, broker: Broker, guard: Guard) -> None:
    """POST /v1/adapters and the jobs it may become."""
    may_generate, may_read = _needs(guard, "generate"), _needs(guard, "read")

    @api.post(
        "/v1/adapters", response_model=AdapterInfo, tags=["generate"],
        responses=_problems(400, 404, 408, 413, 415, 422) | {202: {"model": JobInfo, "description": "Accepted as a job"}},
    )  # fmt: skip
    async def create(
        request: Request,
        asked: GenerateRequest,
        caller: Annotated[str, Depends(may_generate)],
        prefer: Annotated[str, Header(max_length=200, description="`wait=SECONDS` or `respond-async` (RFC 7240)")] = "",
        idempotency_key: Annotated[str, Header(max_length=200)] = "",
    ) -> Response:
        """Generate an adapter and store it; an equal request finds the stored one."""
        # `prefer` stands in the document; what counts are all lines of that header
        preferences = parse_prefer(request.headers.getlist("prefer"))
        answer = await broker.create(asked, caller, preferences.limit_s, idempotency_key)
        headers = preferences.applied
        if not isinstance(answer, Answer):
            info = await run_in_threadpool(broker.jobs.info, answer.id)
            headers |= {"Location": f"/v1/jobs/{answer.id}", "Retry-After": "1"}
            return JSONResponse(info.model_dump(mode="json"), 202, headers)
        headers["Cache-Status"] = f"oral-store; {'hit' if answer.made is None else 'fwd=miss; stored'}"
        if made := answer.made:
            parts = {"queue": made.queue_s, "sample": made.sample_s, "store": made.store_s}
            headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * s:.1f}" for name, s in parts.items())
        return Response(answer.adapter.model_dump_json(), 200, headers, "application/json")

    @api.get("/v1/jobs/{job_id}", tags=["generate"], responses=_problems(404, 422))
    async def job(job_id: JobId, caller: Annotated[str, Depends(may_read)]) -> JobInfo:
        """How a job stands."""
        return await run_in_threadpool(broker.jobs.info, job_id)

    @api.delete("/v1/jobs/{job_id}", tags=["generate"], responses=_problems(404, 422))
    async def cancel(job_id: JobId, caller: Annotated[str, Depends(may_generate)]) -> JobInfo:
        """Cancel a job; one that has ended stays as it is."""
        return await broker.cancel(job_id)


def add_reading(api: FastAPI, broker: Broker, listings: Listings, guard: Guard) -> None:
    """What can be looked at."""
    reader = [Depends(_needs(guard, "read"))]

    @api.get("/v1/adapters", tags=["read"], dependencies=reader, responses=_problems(422))
    async def adapters(
        after: Annotated[str, Query(pattern=r"^[0-9a-f]{0,64}$")] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> AdapterPage:
        """Stored adapters, those of the corpus too, in the order of their ids."""
        return await run_in_threadpool(listings.adapters, after, limit)

    @api.get("/v1/adapters/{adapter_id}", tags=["read"], dependencies=reader, responses=_problems(404, 422))
    async def adapter(adapter_id: Digest) -> AdapterInfo:
        """A stored adapter."""
        info = await broker.info(adapter_id)
        return info.used(await run_in_threadpool(listings.released_as, adapter_id))

    @api.get("/v1/adapters/{adapter_id}/report", tags=["read"], dependencies=reader, responses=_problems(404, 422))
    async def report(adapter_id: Digest) -> AdapterReport:
        """What an adapter looks like, and what of the corpus is near it."""
        return await run_in_threadpool(listings.report, adapter_id)

    @api.get(
        "/v1/adapters/{adapter_id}/files/{name}", tags=["read"], dependencies=reader, response_class=Response,
        responses=_problems(404, 416, 422)
        | {code: {"content": {"application/octet-stream": {}}, "description": "The bytes"} for code in (200, 206)}
        | {304: {"description": "Not modified"}, 307: {"description": "It is at another address"}},
    )  # fmt: skip
    async def file(request: Request, adapter_id: Digest, name: FileName) -> Response:
        """A file of an adapter, or one range of it."""
        tag, asked = f'"{adapter_id}-{name}"', request.headers
        num_bytes = await run_in_threadpool(listings.num_bytes, adapter_id, name)
        headers = _IMMUTABLE | {
            "ETag": tag, "Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}"',
        }  # fmt: skip
        if etag_matches(", ".join(asked.getlist("if-none-match")), tag):
            return Response(status_code=304, headers=headers)
        if link := await run_in_threadpool(listings.link, adapter_id, name):
            return RedirectResponse(link, 307)
        try:
            counts = range_applies(asked.get("if-range", ""), tag)
            part = parse_range(asked.get("range", "") if counts else "", num_bytes)
        except IndexError:
            detail = f"the file has {num_bytes} bytes, the range begins after its end; ask for bytes=0-{num_bytes - 1}"
            raise RefusedError(416, "RangeError", detail, {"Content-Range": f"bytes */{num_bytes}"}) from None
        start, stop = part or (0, num_bytes)
        if part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{num_bytes}"
        headers["Content-Length"] = str(stop - start)
        pieces = () if request.scope.get("is_head") else listings.read(adapter_id, name, start, stop)
        return StreamingResponse(pieces, 206 if part else 200, headers, "application/octet-stream")

    @api.get("/v1/bases", tags=["read"], dependencies=reader, responses=_problems())
    async def bases() -> BaseList:
        """Base versions of the store, and what may be asked for each."""
        return await run_in_threadpool(listings.bases)

    @api.get("/v1/tasks", tags=["read"], dependencies=reader, responses=_problems())
    async def tasks() -> TaskList:
        """The tasks of the configuration: examples of prompts."""
        return await run_in_threadpool(listings.tasks)

    @api.get("/v1/releases", tags=["read"], dependencies=reader, responses=_problems(422))
    async def releases(base: Annotated[str, Query(pattern=f"^$|{IDENTIFIER}")] = "") -> ReleaseList:
        """The latest release of every base, or all of one."""
        return await run_in_threadpool(listings.releases, base)

    @api.get("/v1/models", tags=["read"], dependencies=reader, responses=_problems())
    async def models() -> ModelList:
        """Bases and published adapters, in OpenAI's shape."""
        return await run_in_threadpool(listings.models)


def add_operation(api: FastAPI, broker: Broker, guard: Guard, scrape: Callable[[], str]) -> None:
    """What operators and probes ask."""

    @api.get("/healthz", tags=["operate"], responses=_problems())
    async def healthz() -> Health:
        """The ingress answers."""
        return Health(status="ok")

    @api.get("/readyz", tags=["operate"], responses=_problems())
    async def readyz() -> Health:
        """The store is there and has a generator."""
        await run_in_threadpool(broker.catalog.check)
        return Health(status="ok", generator=await run_in_threadpool(lambda: broker.catalog.recipe))

    @api.get(
        "/metrics",
        tags=["operate"],
        response_class=PlainTextResponse,
        responses=_problems(),
        dependencies=[Depends(_needs(guard, "admin"))],
    )
    async def metrics() -> str:
        """The service's metrics in Prometheus' format, of all nodes."""
        return await run_in_threadpool(scrape)


def _needs(guard: Guard, scope: Scope) -> Callable[..., str]:
    """The dependency that lets a caller with a scope in, and gives the caller's name."""

    async def admit(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> str:
        known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
        if unknown := sorted(request.query_params.keys() - known):
            detail = (
                f"unknown query parameter {ascii(unknown[0])[:80]}; valid here: {', '.join(sorted(known)) or 'none'}"
            )
            raise RefusedError(422, "RequestError", detail)
        server = request.scope.get("server")
        return guard.admit(credentials.credentials if credentials else None, scope, server[0] if server else None)

    return admit  # type: ignore[return-value]


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the problems of a route, with those that any route may have."""
    return {code: {"model": Problem} for code in (*codes, 400, 401, 403, 421, 429, 500, 503)}
