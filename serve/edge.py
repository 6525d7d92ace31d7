"""The outermost layer of the ingress, plain ASGI: request ids, who may ask, limits on bodies, security headers, counts, one
log line.

Requests for another host, and those that a foreign page made a browser send, are refused before a route sees them, as are
bodies that are no JSON (serve/origin.py). HEAD is answered as GET without its body. A body is read whole before a route
sees it: at most `max_body_bytes` (413), within `body_timeout_s` (408), so that neither a huge nor a slow client holds one.
Nothing that a client sends stands in the log but method, route and status.
"""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oral_ray.config import ServeConfig
from serve.metrics import IngressMetrics
from serve.origin import Doorkeeper
from serve.problems import RefusedError, problem

logger = logging.getLogger("ray.serve.oral")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}


class Edge:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: IngressMetrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._doorkeeper = Doorkeeper(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        inner = _as_get(scope) if scope["method"] == "HEAD" else scope

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not given:  # else Serve's proxy, which gave it, says it
                    headers["X-Request-Id"] = request_id
                headers.setdefault("Cache-Control", "no-store")
            elif inner is not scope:
                message = {**message, "body": b""}
            await send(message)

        try:
            body = self._refusal(scope) or await self._body(scope, receive)
            if isinstance(body, bytes):
                await self._app(inner, _replay(body, receive), send_on)
            else:
                await body(scope, receive, send_on)
        finally:
            route = getattr(inner.get("route"), "path", "none")
            self._metrics.requests.inc(1, {"route": route, "method": _method(scope), "status": str(status)})
            elapsed_s = time.perf_counter() - started
            self._metrics.request_s.observe(elapsed_s, {"route": route})
            logger.info("%s %s %d %.1fms id=%s", _method(scope), route, status, 1000 * elapsed_s, request_id)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not for this service, or not in a form that it reads."""
        try:
            self._doorkeeper.admit(scope["method"], Headers(scope=scope))
        except RefusedError as error:
            return problem(error.status, error.title, str(error), scope["request_id"], error.headers)
        return None

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The whole body, or the answer to a client that sends too much or too slowly."""
        limit, request_id = self._config.max_body_bytes, scope["request_id"]
        parts, num_bytes = [], 0
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        break
                    parts.append(message.get("body", b""))
                    num_bytes += len(parts[-1])
                    if num_bytes > limit:
                        return problem(
                            413, "BodyTooLarge", f"the body has more than {limit} bytes; shorten it", request_id
                        )
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            detail = f"the body was not sent within {self._config.body_timeout_s:g} s; send it at once"
            return problem(408, "SlowBody", detail, request_id, {"Connection": "close"})
        return b"".join(parts)


def _as_get(scope: Scope) -> Scope:
    """A HEAD request as the GET request whose headers it asks for; a range counts for GET only (RFC 9110, 14.2)."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "method": "GET", "headers": headers, "is_head": True}


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first and then what else comes (the client's leaving)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _method(scope: Scope) -> str:
    """The method, or OTHER: a client must not make up new series of a metric."""
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return scope["method"] if scope["method"] in known else "OTHER"
