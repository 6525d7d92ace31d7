"""The service speaks HTTP as its standards say: preferences, ETags, ranges, HEAD, and errors that name the remedy."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_fixtures import build_place
from service_fixtures import Service, open_test_service

from serve.headers import Preferences, etag_matches, host_name, parse_prefer, parse_range, range_applies

BODY = {"prompt": "Which metal is it?", "base": "v1"}
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def service(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return open_test_service(build_place(tmp_path_factory.mktemp("http"), tiny_bert))


@pytest.fixture(scope="module")
def weights(service: Service) -> str:
    """The path of a stored weights file."""
    made = ask(service, "POST", "/v1/adapters", json=BODY).json()
    return f"/v1/adapters/{made['id']}/files/adapter_model.safetensors"


def ask(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    return service.ask(lambda client: client.request(method, path, **options))


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["respond-async"], Preferences(None, True)),
        (["Respond-Async"], Preferences(None, True)),
        (["respond-async, wait=10"], Preferences(10.0, True)),
        (["WAIT = 10"], Preferences(10.0, False)),
        (['wait="10"; note="a, b"'], Preferences(10.0, False)),
        (["return=minimal", "wait=3"], Preferences(3.0, False)),
        (["wait=3, wait=9"], Preferences(3.0, False)),
        (['note="respond-async, wait=9", wait=3'], Preferences(3.0, False)),
        (["wait=soon, respond-async;x"], Preferences(None, True)),
        (["wait=-1"], Preferences()),
        (["wait=1.5"], Preferences()),
        (["respond-asynchronously"], Preferences()),
        (['"', ""], Preferences()),
        ([], Preferences()),
    ],
)
def test_preferences_are_tokens_in_any_case_over_all_lines(lines: list[str], wanted: Preferences):
    assert parse_prefer(lines) == wanted


@pytest.mark.parametrize("text", ["a" + ";   " * 8000 + "x y", '"' * 30_000, " " * 30_000 + "x", '"\\' * 15_000])
def test_a_hostile_header_costs_no_time(text: str):
    started = time.perf_counter()
    parse_prefer([text])
    etag_matches(text, '"a"')
    host_name(text)
    parse_range(text, 5)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("header", "weak", "strong"),
    [
        ('"a"', True, True), ('W/"a"', True, False), ('"b", "a"', True, True), ('"b" , W/"a"', True, False),
        ("*", True, True), ('"b"', False, False), ("a", False, False), ('"b","a', False, False), ("", False, False),
        ('"a,b", "c"', False, False),
    ],
)  # fmt: skip
def test_a_list_of_etags_has_a_tag_or_not(header: str, weak: bool, strong: bool):
    assert (etag_matches(header, '"a"'), etag_matches(header, '"a"', is_strong=True)) == (weak, strong)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("Bytes=0-3", (0, 4)), ("bytes=-4", (6, 10)), ("bytes=0-" + "9" * 25, (0, 10)), ("bytes=1-2,4-5", None),
        ("lines=1-2", None),
    ],
)  # fmt: skip
def test_a_range_unit_may_be_written_in_any_case(header: str, part: Any):
    assert parse_range(header, 10) == part


def test_a_range_counts_only_while_the_file_is_the_one_that_if_range_names():
    assert [range_applies(text, '"a"') for text in ("", '"a"', '"b"', 'W/"a"', "Mon, 30 Nov 2026 06:00:00 GMT")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"range": "bytes=0-7"}, 206),
        ({"range": "bytes=0-7", "if-range": "TAG"}, 206),
        ({"range": "bytes=0-7", "if-range": '"other"'}, 200),
        ({"range": "bytes=0-7", "if-range": "W/TAG"}, 200),
        ({"range": "bytes=0-7", "if-none-match": "TAG"}, 304),
        ({"if-none-match": '"other", W/TAG'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"other"'}, 200),
    ],
)
def test_conditions_on_a_file_are_honoured(service: Service, weights: str, headers: dict[str, str], status: int):
    tag = ask(service, "GET", weights).headers["etag"]
    answer = ask(service, "GET", weights, headers={name: text.replace("TAG", tag) for name, text in headers.items()})
    assert answer.status_code == status
    assert (len(answer.content) == 8) == (status == 206)


def test_head_answers_as_get_without_the_body_on_every_route(service: Service, weights: str):
    digest = weights.split("/")[3]
    paths = [
        path.format(adapter_id=digest, job_id="0" * 32, name="provenance.json")
        for path, methods in ask(service, "GET", "/openapi.json").json()["paths"].items()
        if "get" in methods
    ]
    for path in [*paths, "/", "/page/app.js", "/openapi.json", "/nowhere"]:
        head, get = ask(service, "HEAD", path), ask(service, "GET", path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        kept = ("content-type", "content-length", "etag", "cache-control")
        assert [head.headers.get(name) for name in kept] == [get.headers.get(name) for name in kept], path
    assert ask(service, "HEAD", weights, headers={"range": "bytes=0-7"}).status_code == 200  # a range is GET's alone


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "named"),
    [
        ("GET", "/nowhere", {}, 404, ["'/nowhere'", "/openapi.json lists all routes"]),
        ("GET", "/v1/adapters/", {}, 404, ["'/v1/adapters/'", "without a slash at the end"]),
        ("PUT", "/v1/adapters", {"json": {}}, 405, ["'PUT'", "allowed: GET, HEAD, POST"]),
        ("GET", f"/v1/adapters/{'A' * 64}", {}, 422, ["path.adapter_id", "A" * 20, "/openapi.json"]),
        ("POST", "/v1/adapters", {"content": b"{"}, 422, ["no valid JSON", "send one JSON object"]),
        ("POST", "/v1/adapters", {"content": b"\xff{}"}, 400, ["cannot be read", "in UTF-8"]),
        ("POST", "/v1/adapters", {"json": {"prompt": "x"}}, 422, ["body.base: is missing", "/openapi.json"]),
        ("POST", "/v1/adapters", {"json": BODY | {"seed": -7}}, 422, ["body.seed", "found -7"]),
        ("POST", "/v1/adapters", {"json": BODY, "headers": {"content-encoding": "gzip"}}, 415, ["'gzip'", "as it is"]),
        ("POST", "/v1/adapters", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415,
         ["'text/plain'", "application/json"]),
        ("POST", "/v1/adapters", {"content": b" " * 70_000}, 413, ["65536 bytes", "shorten"]),
    ],
)  # fmt: skip
def test_errors_of_routing_and_parsing_name_what_was_found_and_the_remedy(
    service: Service, method: str, path: str, options: dict[str, Any], status: int, named: list[str]
):
    if "content" in options:
        options = {"headers": {"content-type": "application/json"}} | options
    answer = ask(service, method, path, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    for text in named:
        assert text in answer.json()["detail"]
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD, POST"


def test_an_answer_says_which_preferences_it_honoured(service: Service):
    def applied(prefer: Any, seed: int) -> tuple[int, str | None]:
        headers = [("prefer", text) for text in prefer]
        answer = ask(service, "POST", "/v1/adapters", json=BODY | {"seed": seed}, headers=headers)
        return answer.status_code, answer.headers.get("preference-applied")

    assert applied(["Respond-Async"], 900) == (202, "respond-async")
    assert applied(["return=minimal", "respond-async, wait=20"], 901) == (200, "respond-async, wait")
    assert applied(["handling=lenient"], 902) == (200, None)


@pytest.mark.parametrize("path", ["/v1/adapters/", "/v1/bases/", "/page/app.js/", "/healthz/"])
def test_nothing_is_redirected_to_where_the_client_says(service: Service, path: str):
    answer = service.ask(lambda client: client.get(path, headers={"x-forwarded-host": "evil.example"}))
    assert answer.status_code == 404 and "location" not in answer.headers
