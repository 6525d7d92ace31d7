"""What the service refuses: strangers, too many requests, hostile ones; and that it stays small and quiet about secrets."""

import asyncio
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cli_fixtures import build_place
from service_fixtures import Service, open_test_service
from starlette.responses import Response

from oral_ray.config import ServeConfig, build_config
from oral_ray.errors import ConfigError, MissingObjectError, StoreError
from serve.proxy import ProxyProblems
from serve.security import Guard, refuse_open_bind

BODY = {"prompt": "Which metal is it?", "base": "v1"}
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def place(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = build_place(tmp_path_factory.mktemp("security"), tiny_bert)
    lines = [f"{name} {scopes} {sha(f'secret-{name}')}" for name, scopes in
             {"reader": "read", "maker": "generate,read", "boss": "admin"}.items()]  # fmt: skip
    (place / "tokens").write_text("# a comment\n" + "\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def service(place: Path) -> Service:
    return open_test_service(place)


@pytest.fixture(scope="module")
def own_name(place: Path) -> Service:
    return open_test_service(place, 'serve.allowed_hosts=["adapters.test"]')


@pytest.fixture(scope="module")
def guarded(place: Path) -> Service:
    return open_test_service(place, f"serve.tokens=file:{place / 'tokens'}")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ask(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    return service.ask(lambda client: client.request(method, path, **options))


def is_problem(answer: httpx.Response) -> bool:
    return answer.headers["content-type"] == PROBLEM and answer.json()["status"] == answer.status_code


@pytest.mark.parametrize(
    ("name", "method", "path", "status"),
    [
        ("", "GET", "/v1/bases", 401), ("wrong", "GET", "/v1/bases", 401), ("reader", "GET", "/v1/bases", 200),
        ("reader", "POST", "/v1/adapters", 403), ("maker", "POST", "/v1/adapters", 200),
        ("maker", "GET", "/metrics", 403), ("boss", "GET", "/metrics", 200), ("boss", "POST", "/v1/adapters", 200),
        ("", "GET", "/healthz", 200), ("", "GET", "/readyz", 200), ("", "GET", "/v1/adapters", 401),
        ("", "DELETE", f"/v1/jobs/{'0' * 32}", 401), ("reader", "DELETE", f"/v1/jobs/{'0' * 32}", 403),
    ],
)  # fmt: skip
def test_a_token_opens_what_its_scopes_say(guarded: Service, name: str, method: str, path: str, status: int):
    headers = {"authorization": f"Bearer secret-{name}"} if name else {}
    answer = ask(guarded, method, path, headers=headers, json=BODY if method == "POST" else None)
    assert answer.status_code == status
    assert status < 400 or is_problem(answer)
    assert status != 401 or answer.headers["www-authenticate"].startswith("Bearer")


def test_every_route_but_the_probes_asks_for_a_token(guarded: Service):
    open_routes = set()
    for path, methods in ask(guarded, "GET", "/openapi.json").json()["paths"].items():
        for method in methods:
            where = path.format(adapter_id="0" * 64, job_id="0" * 32, name="provenance.json")
            if ask(guarded, method, where, json=BODY if method == "post" else None).status_code != 401:
                open_routes.add(path)
    assert open_routes == {"/healthz", "/readyz"}


def test_requests_over_the_rate_are_told_when_to_come_back(place: Path):
    service = open_test_service(place, f"serve.tokens=file:{place / 'tokens'}", "serve.rate_per_minute=3")

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        boss = [await client.get("/v1/bases", headers={"authorization": "Bearer secret-boss"}) for _ in range(4)]
        return [*boss, await client.get("/v1/bases", headers={"authorization": "Bearer secret-reader"})]

    answers = service.ask(talk)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 200]
    assert is_problem(answers[3]) and 0 < int(answers[3].headers["retry-after"]) <= 21


def test_the_rate_refills_evenly():
    now = [0.0]
    guard = Guard(ServeConfig(rate_per_minute=60), clock=lambda: now[0])
    for _ in range(60):
        guard.admit(None, "read", None)
    with pytest.raises(Exception, match="requests a minute"):
        guard.admit(None, "read", None)
    now[0] = 1.0
    guard.admit(None, "read", None)
    with pytest.raises(Exception, match="requests a minute"):
        guard.admit(None, "read", None)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_a_service_without_tokens_does_not_leave_this_machine(host: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="without tokens"):
        refuse_open_bind(Guard(ServeConfig()), host)
    with pytest.raises(Exception, match="only loopback"):
        Guard(ServeConfig()).admit(None, "read", host)
    (tmp_path / "tokens").write_text(f"a read {sha('x')}\n")
    refuse_open_bind(Guard(ServeConfig(tokens=f"file:{tmp_path / 'tokens'}")), host)
    for own in ("127.0.0.1", "::1", "localhost"):
        refuse_open_bind(Guard(ServeConfig()), own)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "holds no token"), ("a read", "line 1"), (f"a fly {sha('x')}", "'fly'"), ("a read abc", "64 hex digits")],
)
def test_a_damaged_token_file_is_named_without_its_content(tmp_path: Path, text: str, found: str):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError, match=found) as caught:
        Guard(ServeConfig(tokens=f"file:{tmp_path / 'tokens'}"))
    assert sha("x") not in str(caught.value)
    with pytest.raises(ConfigError, match="never stand in it") as caught:
        Guard(ServeConfig(tokens="my-secret-token"))
    assert "my-secret" not in str(caught.value)


def test_tokens_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKENS", f"a read {sha('x')};b admin {sha('y')}")
    assert Guard(ServeConfig(tokens="env:TOKENS")).admit("y", "generate", "10.0.0.1") == "b"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8000", "LOCALHOST.", "app.localhost", "[::1]:8000", "127.9.9.9", "adapters.test:1"]
)
def test_an_open_service_answers_for_loopback_names_and_those_allowed(own_name: Service, host: str):
    assert ask(own_name, "GET", "/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example", "localhost.evil",
     "0.0.0.0", "192.168.1.4", "localhost/", "xadapters.test", "", "\xff"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/bases", "/", "/openapi.json", "/healthz", "/v1/adapters/", "/nowhere"])
def test_an_open_service_answers_for_no_other_host_and_redirects_to_none(own_name: Service, host: str, path: str):
    answer = ask(own_name, "GET", path, headers={b"host": host.encode("latin-1")})
    assert answer.status_code == 421 and is_problem(answer) and "location" not in answer.headers
    detail = answer.json()["detail"]
    assert ascii(host) in detail and "adapters.test" in detail and "serve.allowed_hosts" in detail


def test_a_request_names_one_host(service: Service):
    for hosts in ([], ["127.0.0.1", "127.0.0.1"]):
        answer = asyncio.run(send_asgi(service, [(b"host", host.encode()) for host in hosts]))
        assert answer[0]["status"] == 400 and b"%d Host headers" % len(hosts) in answer[1]["body"]


async def send_asgi(service: Service, headers: list[tuple[bytes, bytes]]) -> list[Any]:
    """The messages that answer a GET of /healthz with just these headers, which no client library sends."""
    scope = {
        "type": "http", "method": "GET", "path": "/healthz", "raw_path": b"/healthz", "query_string": b"",
        "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": None,
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await service.api(scope, receive, send)
    return sent


def test_with_tokens_every_host_is_answered_unless_some_are_named(place: Path, guarded: Service):
    assert ask(guarded, "GET", "/healthz", headers={"host": "10.0.0.7:8000"}).status_code == 200
    named = open_test_service(place, f"serve.tokens=file:{place / 'tokens'}", 'serve.allowed_hosts=["[fd00::7]"]')
    statuses = {host: ask(named, "GET", "/healthz", headers={"host": host}).status_code for host in
                ("[fd00::7]:8000", "127.0.0.1", "10.0.0.7:8000")}  # fmt: skip
    assert statuses == {"[fd00::7]:8000": 200, "127.0.0.1": 200, "10.0.0.7:8000": 421}


@pytest.mark.parametrize("name", ["a.test:80", "http://a.test", "", "a b", "*"])
def test_an_allowed_host_is_a_bare_name(name: str):
    with pytest.raises(ConfigError, match="allowed_hosts"):
        build_config({"serve": {"allowed_hosts": [name]}})


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"]
)
def test_what_a_foreign_page_can_send_without_asking_changes_nothing(service: Service, kind: str | None):
    headers = {"content-type": kind} if kind else {}
    answer = ask(service, "POST", "/v1/adapters", content=json.dumps(BODY).encode(), headers=headers)
    assert answer.status_code == 415 and is_problem(answer) and "'application/json'" in answer.json()["detail"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://", ""])
def test_a_foreign_page_may_change_nothing(service: Service, origin: str):
    for method, path in (("POST", "/v1/adapters"), ("DELETE", f"/v1/jobs/{'0' * 32}")):
        answer = ask(service, method, path, json=BODY if method == "POST" else None, headers={"origin": origin})
        assert answer.status_code == 403 and is_problem(answer) and ascii(origin) in answer.json()["detail"]
    assert ask(service, "GET", "/v1/bases", headers={"origin": origin}).status_code == 200  # it cannot read the answer
    preflight = ask(service, "OPTIONS", "/v1/adapters", headers={"origin": origin})
    assert preflight.status_code == 405 and "access-control-allow-origin" not in preflight.headers


def test_the_services_own_page_may(own_name: Service):
    for origin in ("http://127.0.0.1:8000", "http://localhost:8000", "https://adapters.test"):
        assert ask(own_name, "POST", "/v1/adapters", json=BODY, headers={"origin": origin}).status_code == 200


HOSTILE: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "traversal in an id": ("GET", "/v1/adapters/..%2f..%2fetc%2fpasswd", {}, 404),
    "traversal in an id, plain": ("GET", "/v1/adapters/../../etc/passwd", {}, 404),
    "an id in capitals": ("GET", f"/v1/adapters/{'A' * 64}", {}, 422),
    "traversal in a file name": ("GET", f"/v1/adapters/{'0' * 64}/files/..%2f..%2fcurrent", {}, 404),
    "a file that is none of ours": ("GET", f"/v1/adapters/{'0' * 64}/files/config.json", {}, 422),
    "traversal in a job": ("GET", "/v1/jobs/..%2f..%2frecords", {}, 404),
    "traversal in a base": ("POST", "/v1/adapters", {"json": BODY | {"base": "../v1"}}, 422),
    "a uri as a base": ("POST", "/v1/adapters", {"json": BODY | {"base": "s3://evil/base"}}, 422),
    "a null byte in a base": ("POST", "/v1/adapters", {"json": BODY | {"base": "v1\x00"}}, 422),
    "a newline in a base": ("POST", "/v1/adapters", {"json": BODY | {"base": "v1\n"}}, 422),
    "a huge body": ("POST", "/v1/adapters", {"content": b"x" * 5_000_000}, 413),
    "deep JSON": ("POST", "/v1/adapters", {"content": b"[" * 60_000}, 400),
    "deep JSON, closed": ("POST", "/v1/adapters", {"content": b'{"a":' * 9000 + b"1" + b"}" * 9000}, 400),
    "invalid UTF-8": ("POST", "/v1/adapters", {"content": b'{"prompt": "\xff\xfe", "base": "v1"}'}, 400),
    "a lone surrogate": ("POST", "/v1/adapters", {"content": b'{"prompt": "\\ud800", "base": "v1"}'}, 422),
    "no JSON": ("POST", "/v1/adapters", {"content": b"hello"}, 422),
    "no body": ("POST", "/v1/adapters", {}, 422),
    "an unknown field": ("POST", "/v1/adapters", {"json": BODY | {"__class__": "x"}}, 422),
    "a huge number": ("POST", "/v1/adapters", {"content": b'{"prompt":"a","base":"v1","seed":' + b"9" * 5000 + b"}"}, 400),
    "not a number": ("POST", "/v1/adapters", {"content": b'{"prompt":"a","base":"v1","strength":NaN}'}, 422),
    "a rank that no base has": ("POST", "/v1/adapters", {"json": BODY | {"r": 1024}}, 422),
    "a kind that the corpus lacks": ("POST", "/v1/adapters", {"json": BODY | {"r": 3}}, 422),
    "targets that no base has": ("POST", "/v1/adapters", {"json": BODY | {"target_modules": ["x" * 64]}}, 422),
    "another method": ("PUT", "/v1/adapters", {"json": BODY}, 405),
    "a made up method": ("BREW", "/v1/adapters", {}, 405),
    "nowhere": ("GET", "/admin", {}, 404),
    "a page that is too long": ("GET", "/v1/adapters?limit=1000000", {}, 422),
    "a wild cursor": ("GET", "/v1/adapters?after=../..", {}, 422),
    "traversal in a query": ("GET", "/v1/releases?base=../../etc", {}, 422),
    "a very long header": ("POST", "/v1/adapters", {"json": BODY, "headers": {"idempotency-key": "k" * 4000}}, 422),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_refused_as_problems(service: Service, name: str):
    method, path, options, status = HOSTILE[name]
    if "content" in options:
        options = options | {"headers": {"content-type": "application/json"}}
    answer = ask(service, method, path, **options)
    assert (answer.status_code, is_problem(answer)) == (status, True), answer.text[:300]
    assert len(answer.content) < 4000


def test_hostile_requests_leave_the_memory_of_the_process_flat(service: Service):
    async def round_of_all(client: httpx.AsyncClient) -> None:
        for method, path, options, _ in HOSTILE.values():
            if "content" in options:  # bytes of its own each time, as from a socket: a body that is kept is seen
                options = options | {"content": bytes(bytearray(options["content"]))}
            await client.request(method, path, **options)

    held = []
    for _ in range(4):
        for _ in range(5):
            service.ask(round_of_all)
        held.append(psutil.Process().memory_full_info().uss / 1e6)
    assert held[-1] - held[0] < 4, f"megabytes after each {5 * len(HOSTILE)} requests: {held}"


def test_what_a_client_calls_its_request_does_not_reach_the_log(service: Service, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        answer = ask(
            service, "POST", "/v1/adapters", json=BODY,
            headers={"x-request-id": "x evil=1", "authorization": "Bearer secret-boss"},
        )  # fmt: skip
        assert ask(service, "GET", "/nowhere", headers={"x-request-id": "mine-1"}).json()["request_id"] == "mine-1"
    assert answer.status_code == 200
    assert "evil" not in caplog.text and "secret" not in caplog.text and BODY["prompt"] not in caplog.text
    assert "POST /v1/adapters 200" in caplog.text


@pytest.mark.parametrize(("value", "status"), [(b"caf\xc3\xa9", 200), (b"\xff", 400), (b"a" * 40_000, 431)])
def test_headers_that_the_proxy_would_stumble_over_are_refused_before_it(value: bytes, status: int):
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await Response(b"{}")(scope, receive, send)

    async def talk() -> httpx.Response:
        transport = httpx.ASGITransport(app=ProxyProblems(proxy))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/", headers={b"x-request-id": value})

    answer = asyncio.run(talk())
    assert answer.status_code == status and (status == 200 or is_problem(answer))


@pytest.mark.parametrize(
    ("status", "wanted", "named"),
    [
        (404, 404, "no service is deployed"),
        (408, 408, "Prefer: respond-async"),
        (500, 503, "send it again"),
        (503, 503, ""),
    ],
)
def test_what_the_proxy_says_by_itself_is_a_problem_too(status: int, wanted: int, named: str):
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        await Response("Path not found", status, media_type="text/plain")(scope, receive, send)

    async def talk(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=ProxyProblems(proxy))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    answer = asyncio.run(talk("/v1/bases"))
    assert answer.status_code == wanted and is_problem(answer) and named in answer.json()["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert asyncio.run(talk("/-/healthz")).text == "Path not found"  # Serve's own routes are left alone


def test_a_slow_body_is_cut_off(place: Path):
    service = open_test_service(place, "serve.body_timeout_s=0.2")

    async def drip() -> Any:
        yield b'{"prompt": '
        await asyncio.sleep(5)
        yield b'"x"}'

    answer = ask(service, "POST", "/v1/adapters", content=drip(), headers={"content-type": "application/json"})
    assert answer.status_code == 408 and is_problem(answer)


def test_every_answer_carries_the_security_headers(service: Service):
    for answer in (ask(service, "GET", "/healthz"), ask(service, "GET", "/nowhere"), ask(service, "PUT", "/healthz")):
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"] and answer.headers["x-request-id"]


def test_a_store_that_is_gone_is_a_503_and_nothing_is_written_in_its_place(place: Path, tmp_path: Path):
    own = Path(shutil.copytree(place, tmp_path / "own"))
    service = open_test_service(own, "serve.refresh_s=0")
    ask(service, "POST", "/v1/adapters", json=BODY)
    known = ask(service, "POST", "/v1/adapters", json=BODY).json()  # found in the store, and remembered
    (own / "store").rename(own / "gone")
    for method, path, body in (
        ("POST", "/v1/adapters", BODY | {"seed": 5}), ("GET", f"/v1/adapters/{'0' * 64}", None),
        ("GET", "/readyz", None), ("GET", f"/v1/adapters/{'0' * 64}/files/provenance.json", None),
    ):  # fmt: skip
        answer = ask(service, method, path, json=body)
        assert answer.status_code == 503 and is_problem(answer) and answer.headers["retry-after"], (path, answer.text)
    assert not (own / "store").exists()
    assert ask(service, "POST", "/v1/adapters", json=BODY).json() == known  # what is known is still answered
    (own / "gone").rename(own / "store")
    assert ask(service, "POST", "/v1/adapters", json=BODY | {"seed": 5}).status_code == 200


def test_a_store_that_goes_or_comes_while_it_is_read_is_never_a_404(place: Path, monkeypatch: pytest.MonkeyPatch):
    service = open_test_service(place, "serve.refresh_s=0")
    objects = service.catalog.objects
    read = objects.get

    def going(key: str) -> bytes:
        if key.startswith("current/"):  # it was listed, and is gone
            raise MissingObjectError(key)
        return read(key)

    monkeypatch.setattr(objects, "get", going)
    with pytest.raises(StoreError, match="not there at the moment"):
        service.catalog.check()
    away = ["bases/v1/config.json"]

    def coming(key: str) -> bytes:
        if key in away:
            away.remove(key)
            raise MissingObjectError(key)
        return read(key)

    monkeypatch.setattr(objects, "get", coming)
    assert ask(service, "POST", "/v1/adapters", json=BODY | {"seed": 77}).status_code == 200 and not away


def test_the_service_says_what_its_errors_look_like(service: Service):
    document = ask(service, "GET", "/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            kinds = {
                kind
                for status, answer in operation["responses"].items()
                if status >= "400"
                for kind in answer["content"]
            }
            assert kinds == {PROBLEM}
    assert json.dumps(document).count("HTTPValidationError") == 0
