"""Errors on the wire: which status an OralError has, and problem+json (RFC 9457) for every error there is."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from oral_ray.errors import (
    ArtifactError,
    BaseModelError,
    ConditionError,
    GeneratorError,
    LayoutError,
    MissingObjectError,
    OralError,
    ReleaseError,
    StoreError,
)
from serve.schema import Problem

logger = logging.getLogger("ray.serve.oral")
MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
DOCUMENT = "/openapi.json"
STATUS: dict[type[OralError], int] = {
    ConditionError: 422, LayoutError: 422, BaseModelError: 404, ArtifactError: 404, ReleaseError: 404,
    MissingObjectError: 404, StoreError: 503, GeneratorError: 503,
}  # fmt: skip


class RefusedError(OralError):
    """A request that is refused on the way: its status, what may be tried later, and headers of its own."""

    def __init__(self, status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.title, self.headers = status, title, headers or {}


class BusyError(RefusedError):
    """Too much is waiting already."""

    def __init__(self, detail: str) -> None:
        super().__init__(503, "BusyError", detail, {"Retry-After": str(RETRY_AFTER_S)})


def problem(
    status: int, title: str, detail: str, request_id: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    """The answer; one with status 503 says when to come back."""
    body = Problem(title=title, status=status, detail=detail, request_id=request_id)
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(body.model_dump(), status, retry | (headers or {}), media_type=MEDIA_TYPE)


def describe(error: Exception) -> Problem:
    """An error as a job keeps it."""
    if isinstance(error, RefusedError):
        return Problem(title=error.title, status=error.status, detail=str(error))
    if isinstance(error, OralError):
        return Problem(title=type(error).__name__, status=STATUS.get(type(error), 500), detail=str(error))
    return Problem(
        title="InternalError", status=500, detail="the service failed on this request; its log has the reason"
    )


def add_handlers(api: FastAPI) -> None:
    """Answer every error that a route or the framework raises as a problem."""
    handlers: dict[type[Exception], Callable[..., Awaitable[JSONResponse]]] = {
        OralError: on_error, RequestValidationError: _on_invalid, HTTPException: _on_refused, Exception: on_error,
    }  # fmt: skip
    for kind, handler in handlers.items():
        api.add_exception_handler(kind, handler)


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """An OralError with its own words, anything else with a line in the log."""
    told = describe(error)
    if told.status == 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    headers = error.headers if isinstance(error, RefusedError) else None
    return problem(told.status, told.title, told.detail, _id_of(request), headers)


async def _on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = [f"{'.'.join(map(str, item['loc']))}: {_words(item)}" for item in error.errors()[:20]]
    detail = ascii("; ".join(faults))[1:-1][:2000]
    return problem(422, "RequestError", f"{detail}; {DOCUMENT} says what is valid", _id_of(request))


def _words(fault: dict[str, Any]) -> str:
    """One fault with the value that was found; a JSON that ends or breaks off says where and why."""
    if fault["type"] == "json_invalid":
        return f"no valid JSON ({fault.get('ctx', {}).get('error', fault['msg'])}); send one JSON object"
    if fault["type"] == "missing":
        return "is missing"
    found = fault.get("input")
    value = f" (found {ascii(found)[:60]})" if isinstance(found, str | int | float | bool | None) else ""
    return f"{fault['msg']}{value}"


async def _on_refused(request: Request, error: HTTPException) -> JSONResponse:
    """What the framework refuses by itself: no route, a method that the route has not, a body that it cannot read."""
    where, headers = ascii(request.url.path)[:120], dict(error.headers or {})
    if error.status_code == 404:
        detail = f"there is no route {where}; {DOCUMENT} lists all routes, without a slash at the end"
        return problem(404, "RouteError", detail, _id_of(request), headers)
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        detail = (
            f"{ascii(request.method)[:20]} is not allowed at {where}; allowed: {allowed}; {DOCUMENT} lists all routes"
        )
        return problem(405, "MethodError", detail, _id_of(request), headers | {"Allow": allowed})
    if error.status_code == 400:
        detail = f"the body cannot be read ({error.detail}); send one JSON object in UTF-8, see {DOCUMENT}"
        return problem(400, "BodyError", detail, _id_of(request), headers)
    return problem(error.status_code, "RequestError", f"{error.detail}; see {DOCUMENT}", _id_of(request), headers)


def _methods(request: Request) -> list[str]:
    """Every method that some route has at the request's path. HEAD goes wherever GET does (serve/edge.py)."""
    found = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match != Match.NONE:
            found |= route.methods or set()
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _id_of(request: Request) -> str:
    return str(request.scope.get("request_id", ""))


def as_problems(api: FastAPI) -> None:
    """Make the OpenAPI of an application say that its errors are problems."""
    plain: Callable[[], dict[str, Any]] = api.openapi

    def openapi() -> dict[str, Any]:
        described = api.openapi_schema is not None
        document = plain()
        for path in {} if described else document["paths"].values():
            for operation in path.values():
                for status, answer in operation["responses"].items():
                    if status >= "400" and "content" in answer:
                        answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    api.openapi = openapi  # type: ignore[method-assign]
