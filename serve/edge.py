"""The outermost layer of the ingress, plain ASGI: request ids, limits on bodies, security headers, counts, one log line.

A body is read whole before a route sees it: at most `max_body_bytes` (413), within `body_timeout_s` (408), so that neither
a huge nor a slow client holds a route. Nothing that a client sends stands in the log but method, route and status.
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
from serve.problems import problem

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id

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
            await send(message)

        try:
            body = await self._body(scope, receive)
            if isinstance(body, Response):
                await body(scope, receive, send_on)
                return
            await self._app(scope, _replay(body, receive), send_on)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.inc(1, {"route": route, "method": _method(scope), "status": str(status)})
            elapsed_s = time.perf_counter() - started
            self._metrics.request_s.observe(elapsed_s, {"route": route})
            logger.info("%s %s %d %.1fms id=%s", _method(scope), route, status, 1000 * elapsed_s, request_id)

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
