"""The HTTP service, its client and its page: faults 20b and 22. The service runs in this process, over the fixtures that
the tests of the code under test have (tests/service_fixtures.py, tests/cli_fixtures.py)."""

import json
import socket
import threading
import time
from typing import Any

from fault_checks.bases import each
from fault_checks.place import FaultError, Place, check, refusal

BODY = {"prompt": "Which metal is it?", "base": "v1"}
PROBLEM = "application/problem+json"
HTTP = "tests/test_service_http.py::"
ERRORS = HTTP + "test_errors_of_routing_and_parsing_name_what_was_found_and_the_remedy"


def opened(place: Place) -> Any:
    """The service over a tiny store with a base `v1` and an untrained generator."""
    from cli_fixtures import build_place
    from service_fixtures import open_test_service

    (place.work / "place").mkdir()
    return open_test_service(build_place(place.work / "place", place.inputs / "sound/bases/bert"))


def ask(service: Any, method: str, path: str, **options: Any) -> Any:
    return service.ask(lambda client: client.request(method, path, **options))


@check("20b", "an adapter is not its own nearest neighbour",
       "tests/test_service_report.py::test_a_damaged_adapter_of_the_corpus_is_named_and_the_others_are_compared",
       "tests/test_service_report.py::test_an_adapter_is_not_its_own_neighbour_under_any_name")  # fmt: skip
def report(place: Place) -> None:
    from oral_ray.adapters.artifact import AdapterArtifact, Provenance
    from oral_ray.objects import open_objects
    from oral_ray.store.adapters import AdapterStore
    from oral_ray.store.records import Records

    service = opened(place)
    objects = open_objects(service.config.store.uri)
    store = AdapterStore(objects)
    made = store.get(ask(service, "POST", "/v1/adapters", json=BODY).json()["id"])

    def put(factor: float, run: str) -> str:
        tensors = {name: factor * t if ".lora_B." in name else t for name, t in made.tensors.items()}
        where = Provenance(origin="trained", base="v1", base_fingerprint="f", task=run)
        digest = store.put(AdapterArtifact(made.config, tensors, where))
        Records(objects).commit("corpus", run, {"digests": [digest]})
        return digest

    put(1, "itself")
    put(2, "sound")
    answer = ask(service, "GET", f"/v1/adapters/{made.digest}/report")
    if made.digest in [item["id"] for item in answer.json().get("nearest", ())]:
        raise FaultError("the adapter is its own nearest neighbour")
    weights = objects.root / "adapters" / put(3, "broken") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    answer = ask(service, "GET", f"/v1/adapters/{made.digest}/report")
    if answer.status_code != 200:
        raise FaultError(f"with one damaged adapter the report is a {answer.status_code}: {answer.text[:120]}")


@check("20d", "a report is there though one adapter of the corpus is damaged",
       "tests/test_service_report.py::test_a_damaged_adapter_of_the_corpus_is_named_and_the_others_are_compared",
)  # fmt: skip
def report_of_damaged(place: Place) -> None:
    from oral_ray.objects import open_objects
    from oral_ray.store.adapters import AdapterStore
    from oral_ray.store.records import Records

    service = opened(place)
    objects = open_objects(service.config.store.uri)
    one, other = (ask(service, "POST", "/v1/adapters", json=BODY | {"seed": seed}).json()["id"] for seed in (0, 1))
    Records(objects).commit("corpus", "broken", {"digests": [other]})
    weights = objects.root / "adapters" / AdapterStore(objects).get(other).digest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    answer = ask(service, "GET", f"/v1/adapters/{one}/report")
    if answer.status_code != 200:
        raise FaultError(f"the report is a {answer.status_code}: {answer.text[:120]}")


@each({
    "22a": ("a service without tokens answers for no foreign host", "/healthz"),
    "22b": ("a service without tokens redirects to no foreign host", "/v1/adapters/"),
}, "tests/test_service_security.py::test_an_open_service_answers_for_no_other_host_and_redirects_to_none",
   HTTP + "test_nothing_is_redirected_to_where_the_client_says")  # fmt: skip
def foreign_host(place: Place, path: str) -> None:
    answer = ask(opened(place), "GET", path, headers={"host": "evil.example"})
    if answer.status_code < 400:
        raise FaultError(f"answers {answer.status_code} {answer.headers.get('location', '')}")


@check("22c", "headers that come too slowly are cut off",
       "tests/test_service_connection.py::test_headers_that_come_byte_by_byte_are_cut_off_with_a_problem",
       "tests/test_service_connection.py::test_the_proxy_of_serve_gets_it_with_its_middlewares")  # fmt: skip
def slow_headers(place: Place) -> None:
    """Serve's proxy is uvicorn with its default protocol, after it has called `serve.proxy.middlewares`."""
    import os

    import uvicorn
    from starlette.responses import PlainTextResponse

    os.environ["ORAL_HEADER_TIMEOUT_S"] = "1"
    from serve.proxy import middlewares

    middlewares()
    config = uvicorn.Config(PlainTextResponse("hello"), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    with socket.create_connection(server.servers[0].sockets[0].getsockname()) as client:
        client.settimeout(0.3)
        started = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        while time.monotonic() < started + 12:
            try:
                client.sendall(b"a")
                if client.recv(4096):
                    return
                return
            except TimeoutError:
                continue
            except OSError:
                return
    raise FaultError("still open after 12 s of one byte at a time")


@check("22d", "Prefer is read in any case", HTTP + "test_preferences_are_tokens_in_any_case_over_all_lines")
def preferences(place: Place) -> None:
    answer = ask(opened(place), "POST", "/v1/adapters", json=BODY, headers={"prefer": "Respond-Async"})
    if answer.status_code != 202:
        raise FaultError(f"'Respond-Async' is answered with {answer.status_code}")


@each({
    "22e": ("If-Range with another tag means the whole file", '{"range": "bytes=0-7", "if-range": "\\"other\\""} 200'),
    "22f": ("a list in If-None-Match is read", '{"if-none-match": "\\"other\\", TAG"} 304'),
}, HTTP + "test_conditions_on_a_file_are_honoured")  # fmt: skip
def conditions(place: Place, what: str) -> None:
    service = opened(place)
    headers, _, status = what.rpartition(" ")
    made = ask(service, "POST", "/v1/adapters", json=BODY).json()
    path = f"/v1/adapters/{made['id']}/files/adapter_model.safetensors"
    tag = ask(service, "GET", path).headers["etag"]
    sent = {name: text.replace("TAG", tag) for name, text in json.loads(headers).items()}
    answer = ask(service, "GET", path, headers=sent)
    if answer.status_code != int(status):
        raise FaultError(f"{sent} is answered with {answer.status_code}")


@check(
    "22g", "HEAD is answered as GET without a body", HTTP + "test_head_answers_as_get_without_the_body_on_every_route"
)
def head(place: Place) -> None:
    answer = ask(opened(place), "HEAD", "/v1/bases")
    if answer.status_code != 200:
        raise FaultError(f"HEAD /v1/bases is answered with {answer.status_code}")


@check("22h", "an adapter's own target_modules can be sent back",
       "tests/test_service_api.py::test_the_target_modules_of_an_answer_can_be_sent_back")  # fmt: skip
def targets_sent_back(place: Place) -> None:
    service = opened(place)
    made = ask(service, "POST", "/v1/adapters", json=BODY).json()
    config = ask(service, "GET", f"/v1/adapters/{made['id']}/files/adapter_config.json").json()
    for targets in (made["target_modules"], config["target_modules"]):
        again = ask(service, "POST", "/v1/adapters", json=BODY | {"r": made["r"], "target_modules": targets})
        if again.status_code != 200:
            raise FaultError(f"{targets}: {again.status_code} {again.text[:160]}")


@each({
    "22i": ("a 404 names the path and a remedy", "GET /nowhere 404 '/nowhere' /openapi.json"),
    "22j": ("a 405 names the method and those that are allowed", "PUT /v1/adapters 405 'PUT' POST"),
    "22k": ("a body that does not parse is a problem with a remedy", "POST /v1/adapters 422 JSON send"),
}, ERRORS)  # fmt: skip
def errors(place: Place, what: str) -> None:
    method, path, status, *words = what.split()
    options = {"content": b"{", "headers": {"content-type": "application/json"}} if method == "POST" else {}
    answer = ask(opened(place), method, path, **options)
    if answer.headers["content-type"] != PROBLEM:
        raise FaultError(f"{answer.status_code} as {answer.headers['content-type']}: {answer.text[:120]}")
    detail = answer.json().get("detail", "")
    if answer.status_code != int(status) or not all(word in detail for word in words):
        raise FaultError(f"{answer.status_code} {detail!r}")


@check("22l", "a prompt of invisible characters is refused",
       "tests/test_generator_condition.py::test_a_prompt_that_shows_nothing_is_refused_with_its_code_points")  # fmt: skip
def invisible(place: Place) -> None:
    answer = ask(opened(place), "POST", "/v1/adapters", json=BODY | {"prompt": "\u200b\u2060\u200d"})
    if answer.status_code < 400:
        raise FaultError(f"answered with {answer.status_code}, an adapter was made")


@check("22m", "a download leaves another adapter's folder alone",
       "tests/test_client.py::test_a_download_leaves_another_adapters_folder_alone_and_asks_for_nothing")  # fmt: skip
def download(place: Place) -> None:
    from loopback import serve_artifacts, serving

    from fault_checks.store import artifact
    from oral_ray.adapters.artifact import read_folder
    from oral_ray.client import OralClient

    mine, wanted = artifact(place, 1), artifact(place, 2)
    context = serving() if hasattr(serving(), "__enter__") else None
    assert context is not None
    with context as server:
        serve_artifacts(server, mine, wanted)
        with OralClient(server.url) as client:
            client.download(mine.digest, place.work / "mine")
            refusal(lambda: client.download(wanted.digest, place.work / "mine"))
    if read_folder(place.work / "mine").digest != mine.digest:
        raise FaultError("the folder holds the other adapter, the first is gone")


@check("22n", "the page keeps long seeds to the last digit",
       "tests/test_page.py::test_the_page_reads_and_writes_integers_of_any_size")  # fmt: skip
def long_seeds(place: Place) -> None:
    """The page's own modules, run by node, read an answer with the largest seed that the service takes."""
    import shutil
    import subprocess

    if not shutil.which("node"):
        raise LookupError("node is not installed")
    folder = place.work / "page"
    shutil.copytree(place.code / "serve/page", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    seed = 2**63 - 1
    (folder / "run.js").write_text(
        f"globalThis.fetch = async () => new Response('{{\"seed\": {seed}}}', {{ status: 200 }});"
        "globalThis.sessionStorage = globalThis.localStorage = { getItem: () => null, setItem() {} };"
        "globalThis.document = { querySelector: () => null, getElementById: () => null };"
        'const { read } = await import("./api.js");'
        "console.log(String((await read('/v1/adapters/x')).seed));"
    )
    done = subprocess.run(["node", "run.js"], cwd=folder, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise LookupError(f"node: {done.stderr[-300:]}")
    if done.stdout.strip() != str(seed):
        raise FaultError(f"{seed} is shown as {done.stdout.strip()}")
