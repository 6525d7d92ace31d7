"""Connections as Serve's proxy accepts them, without Serve: uvicorn with the protocol that serve/connection.py puts in."""

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from oral_ray.errors import ConfigError
from serve import connection
from serve.connection import HEADER_TIMEOUT_VARIABLE, header_timeout_s, limit_headers, limited

TIMEOUT_S = 0.5
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
SLOW_ANSWER = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module", params=[HttpToolsProtocol, H11Protocol])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    async def app(scope, receive, send) -> None:
        if scope["path"] == "/slow":
            await sleep(3 * TIMEOUT_S)
        await PlainTextResponse("hello")(scope, receive, send)

    from asyncio import sleep

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", http=limited(request.param, TIMEOUT_S)
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def talk(port: int, *parts: bytes, pause_s: float = 0.0, silence_s: float = 2.0) -> tuple[bytes, float]:
    """What comes back to parts sent with pauses, until the other side closes, and after how long (never: inf)."""
    started, answer = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port)) as client:
        for part in (*parts, b""):
            client.sendall(part)
            until = time.monotonic() + (pause_s if part else silence_s)
            while select.select([client], [], [], max(0.0, until - time.monotonic()))[0]:
                data = client.recv(65536)
                if not data:
                    return answer, time.monotonic() - started
                answer += data
    return answer, float("inf")


def test_headers_that_come_byte_by_byte_are_cut_off_with_a_problem(port: int):
    answer, took_s = talk(port, REQUEST, *[b"a"] * 40, pause_s=0.1)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in head
    assert b"within 0.5 s" in body and took_s < 8 * TIMEOUT_S + 4


def test_a_client_that_says_nothing_is_cut_off(port: int):
    answer, took_s = talk(port)
    assert answer == b"" and TIMEOUT_S * 0.9 < took_s < 4


def test_a_later_request_on_a_connection_has_the_same_limit(port: int):
    answer, took_s = talk(port, REQUEST + b"\r\n", b"GET", pause_s=0.05)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer and took_s < 4


def test_blank_lines_between_requests_do_not_hold_a_connection(port: int):
    answer, took_s = talk(port, REQUEST + b"\r\n", *[b"\r\n"] * 20, pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 200 ") and took_s < 4


def test_an_answer_that_takes_longer_than_headers_may_is_waited_for(port: int):
    answer, _ = talk(port, SLOW_ANSWER[:20], SLOW_ANSWER[20:], pause_s=0.1, silence_s=4 * TIMEOUT_S)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"408" not in answer


def test_a_connection_that_waits_for_its_next_request_is_kept(port: int):
    answer, _ = talk(port, REQUEST + b"\r\n", REQUEST + b"Connection: close\r\n\r\n", pause_s=3 * TIMEOUT_S)
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n"])
def test_what_is_no_http_is_a_problem(port: int, data: bytes):
    answer, _ = talk(port, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"application/problem+json" in head and b"no HTTP/1.1 request" in body


def test_an_upgrade_to_websockets_is_passed_over(port: int):
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    )
    answer, _ = talk(port, REQUEST + upgrade, silence_s=1)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_the_proxy_of_serve_gets_it_with_its_middlewares(monkeypatch: pytest.MonkeyPatch):
    from serve.proxy import middlewares

    plain = HttpToolsProtocol  # another test of this process may have put the limit in
    monkeypatch.setattr(connection.auto, "AutoHTTPProtocol", plain)
    monkeypatch.setenv(HEADER_TIMEOUT_VARIABLE, "7")
    middlewares()
    config = uvicorn.Config(lambda: None, factory=True)
    config.load()
    assert config.http_protocol_class is not plain and issubclass(config.http_protocol_class, plain)
    once = connection.auto.AutoHTTPProtocol
    limit_headers()
    assert connection.auto.AutoHTTPProtocol is once


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv(HEADER_TIMEOUT_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{HEADER_TIMEOUT_VARIABLE} is '{text}'"):
        header_timeout_s()
    monkeypatch.delenv(HEADER_TIMEOUT_VARIABLE)
    assert header_timeout_s() == 10.0
