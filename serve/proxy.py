"""What stands in front of Serve's proxy: its own errors (no replica, a replica lost on the way) become Problems, like every
other error, and headers that it would stumble over or carry without end are refused.

Serve loads it where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy:middlewares stands in the environment of the
Ray node.
"""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import MEDIA_TYPE, problem


def middlewares() -> list[Middleware]:
    """What Serve puts in front of its proxy."""
    return [Middleware(ProxyProblems)]


MAX_HEADER_BYTES = 32768


class ProxyProblems:
    """Turns an error of the proxy into a Problem with Retry-After; leaves the application's own answers alone.

    Headers that are no UTF-8 are a 400, more than MAX_HEADER_BYTES of them a 431.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := _refusal(scope["headers"])):
            await refusal(scope, receive, send)
            return
        is_replaced = started = False

        async def send_on(message: Message) -> None:
            nonlocal is_replaced, started
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                is_replaced = message["status"] >= 500 and not kind.startswith(MEDIA_TYPE.encode())
                started = True
                if is_replaced:
                    await _unavailable()(scope, receive, send)
            if not is_replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            if scope["type"] == "http" and not started and not scope["path"].startswith("/-/"):
                await _unavailable()(scope, receive, send)


def _refusal(headers: Sequence[tuple[bytes, bytes]]) -> Response | None:
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return problem(431, "HeadersTooLarge", f"the headers have more than {MAX_HEADER_BYTES} bytes; shorten them")
    try:
        for _, value in headers:
            value.decode()
    except UnicodeDecodeError:
        return problem(400, "HeaderError", "a header is no UTF-8; send text")
    return None


def _unavailable() -> Response:
    return problem(503, "UnavailableError", "the service lost this request on the way; send it again")
