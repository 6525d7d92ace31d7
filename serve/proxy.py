"""What stands in front of Serve's proxy: its own errors (no replica, a replica lost on the way, nothing at a path) become
Problems, like every other error; headers that it would stumble over, carry without end or wait for are refused.

Serve calls `middlewares` in the process of every proxy where the environment of the Ray node has
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy:middlewares; ORAL_HEADER_TIMEOUT_S there is how long a client may take
to send headers.
"""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.connection import limit_headers
from serve.edge import HEADERS
from serve.problems import MEDIA_TYPE, problem

MAX_HEADER_BYTES = 32768


def middlewares() -> list[Middleware]:
    """What Serve puts in front of its proxy; it asks before the proxy listens, so connections are limited here."""
    limit_headers()
    return [Middleware(ProxyProblems)]


class ProxyProblems:
    """Turns an error of the proxy into a Problem; leaves the application's own answers and Serve's `/-/` routes alone.

    Headers that are no UTF-8 are a 400, more than MAX_HEADER_BYTES of them a 431.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := _refusal(scope["headers"])):
            await refusal(scope, receive, send)
            return
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        is_replaced = started = False

        async def send_on(message: Message) -> None:
            nonlocal is_replaced, started
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                is_replaced = message["status"] >= 400 and not kind.startswith(MEDIA_TYPE.encode())
                started = True
                if is_replaced:
                    await _of_proxy(message["status"])(scope, receive, send)
            if not is_replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            if not started:
                await _of_proxy(503)(scope, receive, send)


def _refusal(headers: Sequence[tuple[bytes, bytes]]) -> Response | None:
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return _answer(431, "HeadersTooLarge", f"the headers have more than {MAX_HEADER_BYTES} bytes; shorten them")
    try:
        for _, value in headers:
            value.decode()
    except UnicodeDecodeError:
        return _answer(400, "HeaderError", "a header is no UTF-8; send text")
    return None


def _of_proxy(status: int) -> Response:
    """What Serve's proxy says by itself, in our words."""
    if status == 404:
        return _answer(
            404, "RouteError", "no service is deployed at this path; start it with serve run (docs/service.md)"
        )
    if status == 408:
        detail = (
            "the request took longer than X-Request-Timeout-Seconds allows; raise it, or send 'Prefer: respond-async'"
        )
        return _answer(408, "TimeoutError", detail)
    return _answer(503, "UnavailableError", "the service lost this request on the way; send it again")


def _answer(status: int, title: str, detail: str) -> Response:
    return problem(status, title, detail, headers=HEADERS | {"Cache-Control": "no-store"})
