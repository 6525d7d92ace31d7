"""The service as its users see it: started by `serve run` on a free port, asked over HTTP."""

import json
import os
import select
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import SERVE_ENVIRONMENT

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, body: Any = None, raw: bytes | None = None) -> tuple[int, str, Any]:
    """(status, content type, parsed body) of a GET, or of a POST when there is a body."""
    data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["content-type"], json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], json.loads(error.read())


@pytest.fixture(scope="module")
def url(whole_path: tuple[Path, Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running service over the trained store."""
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    port = free_port()
    starter = (
        "import sys, time, ray; from ray import serve; from serve.app import build_app\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False)\n"
        f"serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}})\n"
        "serve.run(build_app(dict(arg.split('=', 1) for arg in sys.argv[1:])))\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", starter, f"config={ROOT / 'tests' / 'tiny.toml'}", f"store.uri={whole_path[0]}"],
        cwd=ROOT, env=os.environ | SERVE_ENVIRONMENT | {"PYTHONPATH": str(ROOT), "ORAL_HEADER_TIMEOUT_S": "3"},
        stdin=subprocess.PIPE, stdout=log, stderr=log,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask(f"http://127.0.0.1:{port}/healthz")[0] == 200:
                break
        except (OSError, ValueError):
            time.sleep(0.5)
    else:
        log.seek(0)
        process.kill()
        raise AssertionError(log.read()[-4000:])
    yield f"http://127.0.0.1:{port}"
    process.communicate(timeout=60)


def test_serve_knows_the_settings_that_its_ingress_process_is_given() -> None:
    from ray.serve._private import constants

    from serve.app import FAST

    assert [name for name in FAST if not hasattr(constants, name)] == []


def test_serve_build_writes_both_deployments_for_serve_deploy(tmp_path: Path) -> None:
    file = tmp_path / "built.yaml"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ORAL_CONFIG": str(ROOT / "tests" / "tiny.toml")}
    serve = Path(sys.executable).parent / "serve"
    subprocess.run([serve, "build", "serve.built:app", "-o", file], cwd=ROOT, env=environment, check=True, timeout=120)
    [application] = yaml.safe_load(file.read_text())["applications"]
    assert application["import_path"] == "serve.built:app"
    assert {deployment["name"] for deployment in application["deployments"]} == {"generator", "ingress"}


def test_a_prompt_becomes_a_stored_adapter_and_the_same_seed_the_same_one(url: str) -> None:
    body = {"prompt": "Which kind of matter is defined here?", "base": "tiny-t2", "seed": 3}
    status, _, made = ask(f"{url}/v1/adapters", body)
    assert status == 200
    assert (made["prompt"], made["base"], made["seed"]) == (body["prompt"], "tiny-t2", 3)
    assert Path(made["uri"].removeprefix("file://"), "adapter_config.json").is_file()
    assert ask(f"{url}/v1/adapters", body)[2]["id"] == made["id"]
    assert ask(f"{url}/v1/adapters", body | {"seed": 4})[2]["id"] != made["id"]
    assert ask(f"{url}/v1/adapters/{made['id']}")[2] == made


def test_the_service_and_the_command_line_make_the_same_adapter(
    url: str, whole_path: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    from oral_ray.cli import main

    prompt = "Tell matter apart."
    made = ask(f"{url}/v1/adapters", {"prompt": prompt, "base": "tiny-t0", "seed": 1})[2]
    arguments = ["--config", str(ROOT / "tests" / "tiny.toml"), "--store", str(whole_path[0])]
    assert main(["generate", "--prompt", prompt, "--base", "tiny-t0", "--seed", "1", *arguments]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["id"] == made["id"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"prompt": " ", "base": "tiny-t0"}, 422, "prompt is empty"),
        ({"prompt": "x" * 2000, "base": "tiny-t0"}, 422, "2000 characters"),
        ({"prompt": "x" * 1_000_000, "base": "tiny-t0"}, 413, "65536 bytes"),
        ({"prompt": "a task", "base": "tiny-t9"}, 404, "tiny-t9"),
        ({"prompt": "a task", "base": "../../etc"}, 422, "base"),
        ({"prompt": "a task", "base": "tiny-t0", "seed": -1}, 422, "seed"),
        ({"prompt": "a task", "base": "tiny-t0", "rank": 8}, 422, "rank"),
    ],
)
def test_bad_requests_are_refused_with_the_value_and_the_remedy(url: str, body: Any, status: int, named: str) -> None:
    found, kind, problem = ask(f"{url}/v1/adapters", body)
    assert (found, kind) == (status, "application/problem+json")
    assert named in problem["detail"]


def test_what_is_no_json_and_what_is_no_id_are_refused(url: str) -> None:
    assert ask(f"{url}/v1/adapters", raw=b"{")[0] == 422
    assert ask(f"{url}/v1/adapters/{'0' * 64}")[0] == 404
    assert ask(f"{url}/v1/adapters/not-an-id")[0] == 422


def test_errors_of_routing_and_parsing_are_problems_too(url: str) -> None:
    answers = [
        ask(f"{url}/nowhere"),
        ask(f"{url}/v1/bases", body={}),
        ask(f"{url}/v1/adapters", raw=b'{"prompt": "\xff"}'),
    ]
    assert [(status, kind) for status, kind, _ in answers] == [
        (status, "application/problem+json") for status in (404, 405, 400)
    ]
    assert all(problem["detail"] for *_, problem in answers)


def test_the_service_describes_itself(url: str) -> None:
    schema = ask(f"{url}/openapi.json")[2]
    assert {"/v1/adapters", "/v1/jobs/{job_id}", "/v1/bases", "/healthz", "/metrics"} <= set(schema["paths"])
    assert set(schema["components"]["schemas"]["GenerateRequest"]["required"]) == {"prompt", "base"}


HEAD = b"POST /v1/adapters HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GOOD = b'{"prompt": "a task", "base": "tiny-t0"}'


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


RAW = {
    "a newline in a header": HEAD + b"X-Request-Id: a\nSet-Cookie: b=1\r\n" + sized(GOOD),
    "a carriage return in a header": HEAD + b"Prefer: wait=1\rX-Evil: 1\r\n" + sized(GOOD),
    "a null byte in a header": HEAD + b"Prefer: wait=1\x00\r\n" + sized(GOOD),
    "a request id that is no text": HEAD + b"X-Request-Id: \xff\xfe\r\n" + sized(b"{"),
    "a header of Serve's own that is no text": HEAD + b"Serve-Multiplexed-Model-Id: \xff\r\n" + sized(b"{"),
    "a deadline that is no number": HEAD + b"X-Request-Timeout-Seconds: soon\r\n" + sized(b"{"),
    "a space before the colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "two lengths": HEAD + b"Content-Length: 3\r\n" + sized(b"hello"),
    "a length and chunks": HEAD + b"Transfer-Encoding: chunked\r\n" + sized(b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"),
    "a chunk that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a header of a megabyte": HEAD + b"X-A: " + b"a" * 1_000_000 + b"\r\n" + sized(GOOD),
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "a path that is no text": b"GET /v1/adapters/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    "a path out of the root": b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "another host's uri": b"GET http://example.org/v1/none HTTP/1.1\r\nHost: example.org\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_no_client_library_sends_are_refused_and_the_service_goes_on(url: str, name: str) -> None:
    answer = send_raw(url, RAW[name])
    status = int(answer.split()[1]) if answer else 400  # the connection was closed without a word
    assert 400 <= status < 500, answer[:500]
    assert not answer or b"application/problem+json" in answer.partition(b"\r\n\r\n")[0], answer[:500]
    assert b"set-cookie" not in answer.lower().partition(b"\r\n\r\n")[0] and b"x-evil" not in answer.lower()
    assert ask(f"{url}/healthz")[0] == 200


def test_clients_that_never_finish_hold_nobody_else(url: str) -> None:
    held = []
    for _ in range(100):
        held.append(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10))
        held[-1].sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    started = time.monotonic()
    assert ask(f"{url}/healthz")[0] == 200 and time.monotonic() - started < 5
    assert b"408" in held[0].recv(65536).split(b"\r\n")[0]
    for connection in held:
        connection.close()


def test_slow_headers_are_cut_off_with_a_problem(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(HEAD)
        for _ in range(20):
            if select.select([connection], [], [], 0.5)[0]:
                break
            connection.sendall(b"X")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in answer and b"within 3 s" in answer


def test_another_host_is_answered_by_neither_proxy_nor_service(url: str) -> None:
    for path in (b"/", b"/v1/bases", b"/v1/adapters/"):
        answer = send_raw(url, b"GET " + path + b" HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 421 ") and b"serve.allowed_hosts" in answer and b"location:" not in answer


def send_raw(url: str, data: bytes) -> bytes:
    """What comes back until the service closes the connection or says nothing for half a second."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                answer += part
                connection.settimeout(0.5)
        except OSError:
            pass
    return answer
