"""Connections of Serve's HTTP proxy: headers have a time limit, and what is no HTTP is refused with a Problem.

Serve gives its proxies' uvicorn no protocol of its own and no time limit on headers, so a client that sends a byte now and
then, or none, holds a connection for ever. `limit_headers()` puts a subclass in the place of uvicorn's protocol. It is
called in the process of the proxy (serve/proxy.py), before its server starts.
"""

import asyncio
import os
from typing import Any

from uvicorn.protocols.http import auto

from oral_ray.errors import ConfigError
from serve.edge import HEADERS
from serve.problems import problem

HEADER_TIMEOUT_VARIABLE = "ORAL_HEADER_TIMEOUT_S"
DEFAULT_HEADER_TIMEOUT_S = 10.0
_NO_HTTP = "this is no HTTP/1.1 request; send one, as curl does (docs/service.md has examples)"


def limit_headers() -> None:
    """Let every HTTP connection that uvicorn accepts in this process from now on be a limited one."""
    if not issubclass(auto.AutoHTTPProtocol, _Limited):
        auto.AutoHTTPProtocol = limited(auto.AutoHTTPProtocol, header_timeout_s())  # type: ignore[misc]


def header_timeout_s() -> float:
    """Seconds for the headers of a request, from the environment; ConfigError for what is no positive number."""
    text = os.environ.get(HEADER_TIMEOUT_VARIABLE) or str(DEFAULT_HEADER_TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{HEADER_TIMEOUT_VARIABLE} is {text!r}; give a number of seconds above 0, such as 10")
    return seconds


class _Limited:
    """Marks a protocol that is limited already."""


def limited(protocol: type[Any], timeout_s: float) -> type[Any]:
    """A uvicorn protocol (httptools' or h11's) whose requests must have sent their headers within `timeout_s` seconds.

    The time runs from the opening of the connection, and from the first byte of every later request. A client that has
    sent something by then is told (408); one that has not is cut off. WebSockets are not spoken: the upgrade is ignored.
    """

    class LimitedProtocol(protocol, _Limited):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.ws_protocol_class = None
            self._timer: asyncio.TimerHandle | None = None
            self._has_sent = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._timer is None and not self._is_answering():
                self._start_timer()
            self._has_sent = True
            super().data_received(data)
            if self._is_answering():  # its headers are complete; the body has a limit of its own (serve/edge.py)
                self._stop_timer()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "RequestError", _NO_HTTP)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(timeout_s, self._time_is_up)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer, self._has_sent = None, False

        def _time_is_up(self) -> None:
            self._timer = None
            if self.transport.is_closing():
                return
            if self._has_sent:
                self._refuse(408, "SlowHeaders", f"the headers were not sent within {timeout_s:g} s; send them at once")
            else:
                self.transport.close()

        def _refuse(self, status: int, title: str, detail: str) -> None:
            """Answer without the application, and close."""
            answer = problem(status, title, detail, headers=HEADERS | {"Connection": "close"})
            lines = [b"HTTP/1.1 %d %s" % (status, {400: b"Bad Request", 408: b"Request Timeout"}[status])]
            lines += [name + b": " + value for name, value in answer.raw_headers]
            lines += [b"", bytes(answer.body)]
            self.transport.write(b"\r\n".join(lines))
            self.transport.close()

    return LimitedProtocol
