"""The client against a real HTTP server: it waits as told, repeats what may pass, checks what it downloads."""

import asyncio
import email.utils
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Answer, Server, adapter_json, problem, serve_artifacts, serving

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.client import AsyncOralClient, Job, OralClient, flows
from oral_ray.errors import ArtifactError, ServiceError

DIGEST = "a" * 64
Do = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def do(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Call one method of a client of the server, of either kind."""
    monkeypatch.delenv("ORAL_TOKEN", raising=False)
    monkeypatch.setattr(flows, "POLL_S", 0.02)

    def call(
        method: str, *args: Any, token: str | None = None, timeout_s: float = 10.0, url: str = "", **kw: Any
    ) -> Any:
        if request.param == "sync":
            with OralClient(url or server.url, token, timeout_s) as client:
                return getattr(client, method)(*args, **kw)

        async def run() -> Any:
            async with AsyncOralClient(url or server.url, token, timeout_s) as client:
                return await getattr(client, method)(*args, **kw)

        return asyncio.run(run())

    return call


def test_a_prompt_becomes_an_adapter_and_only_what_was_asked_for_is_sent(server: Server, do: Do) -> None:
    server.answers = [Answer(200, adapter_json(DIGEST))]
    made = do("generate", "Tell spam from mail.", base="b1", seed=3)
    assert (made.id, made.r, made.target_modules) == (DIGEST, 2, ("q_proj", "v_proj"))
    assert server.asked[0].json == {"prompt": "Tell spam from mail.", "base": "b1", "seed": 3}
    do("generate", "x", base="b1", r=4, lora_alpha=8.0, target_modules=["q"], strength=0.5)
    assert server.asked[1].json == {
        "prompt": "x", "base": "b1", "seed": 0, "r": 4, "lora_alpha": 8.0, "target_modules": ["q"], "strength": 0.5,
    }  # fmt: skip


def test_a_job_is_waited_for(server: Server, do: Do) -> None:
    job = {"id": "1" * 32, "status": "queued", "request": {}, "created_s": 1.0}
    done = job | {"status": "succeeded", "adapter": adapter_json(DIGEST)}
    server.answers = [Answer(202, job, {"Location": f"/v1/jobs/{job['id']}"}), Answer(200, job), Answer(200, done)]
    assert do("generate", "x", base="b1").id == DIGEST
    assert [asked.path for asked in server.asked] == ["/v1/adapters", *[f"/v1/jobs/{job['id']}"] * 2]


@pytest.mark.parametrize(
    ("end", "words", "status"),
    [
        (
            {"status": "failed", "problem": {"title": "x", "status": 404, "detail": "base 'b9' is gone"}},
            "'b9' is gone",
            404,
        ),
        ({"status": "cancelled"}, "was cancelled", 0),
    ],
)
def test_a_job_that_ends_badly_raises_its_problem(server: Server, do: Do, end: Any, words: str, status: int) -> None:
    server.answers = [Answer(200, {"id": "1" * 32, **end})]
    with pytest.raises(ServiceError, match=words) as raised:
        do("wait", Job(id="1" * 32, status="queued"))
    assert raised.value.status == status


def test_a_job_that_takes_too_long_is_left_with_its_id(server: Server, do: Do) -> None:
    server.answers = [Answer(202, {"id": "1" * 32, "status": "queued"})]
    with pytest.raises(ServiceError, match=f"job {'1' * 32} is still queued"):
        do("generate", "x", base="b1", timeout_s=1.5)


def test_a_refusal_that_passes_is_repeated_with_the_same_idempotency_key(server: Server, do: Do) -> None:
    server.answers = [problem(503, "busy", **{"Retry-After": "0"}), problem(429, "slow", **{"Retry-After": "0"})]
    server.answers.append(Answer(200, adapter_json(DIGEST)))
    assert do("generate", "x", base="b1").id == DIGEST
    keys = {asked.headers["idempotency-key"] for asked in server.asked}
    assert (len(server.asked), len(keys)) == (3, 1)
    do("generate", "x", base="b1")
    assert server.asked[3].headers["idempotency-key"] not in keys


@pytest.mark.parametrize("as_date", [False, True])
def test_the_client_waits_as_long_as_it_is_told(server: Server, do: Do, as_date: bool) -> None:
    after = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    server.answers = [problem(503, "busy", **{"Retry-After": after}), Answer(200, adapter_json(DIGEST))]
    started = time.monotonic()
    do("get", DIGEST)
    assert 0.9 <= time.monotonic() - started < 5


def test_a_wait_longer_than_the_time_given_is_refused_at_once(server: Server, do: Do) -> None:
    server.answers = [problem(503, "the queue is full", **{"Retry-After": "60"})]
    started = time.monotonic()
    with pytest.raises(ServiceError, match="the queue is full"):
        do("get", DIGEST, timeout_s=5)
    assert time.monotonic() - started < 2
    assert len(server.asked) == 1


def test_a_refusal_carries_the_problem_and_is_not_repeated(server: Server, do: Do) -> None:
    server.answers = [problem(422, "prompt is empty; describe the task")]
    with pytest.raises(ServiceError, match=r"^prompt is empty; describe the task$") as raised:
        do("generate", " ", base="b1")
    assert (raised.value.status, raised.value.request_id, len(server.asked)) == (422, "req-7", 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(502, b"<html>Bad Gateway</html>", {"Retry-After": "999"}), "502: <html>Bad Gateway"),
        (Answer(200, b"<html>a login page</html>"), "is no Adapter: body"),
        (Answer(200, {"id": DIGEST}), "is no Adapter: uri"),
    ],
)
def test_an_answer_of_something_else_says_so(server: Server, do: Do, answer: Answer, words: str) -> None:
    server.answers = [answer]
    with pytest.raises(ServiceError, match=words):
        do("get", DIGEST)


def test_nobody_there_is_an_error_after_a_few_attempts(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_DIALS", 1)
    with pytest.raises(ServiceError, match="no answer from the service to GET"):
        do("get", DIGEST, url="http://127.0.0.1:9")


def test_the_token_comes_from_the_argument_or_the_environment(
    server: Server, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Answer(200, adapter_json(DIGEST))]
    do("get", DIGEST)
    monkeypatch.setenv("ORAL_TOKEN", "from-env")
    do("get", DIGEST)
    do("get", DIGEST, token="given")
    sent = [asked.headers.get("authorization") for asked in server.asked]
    assert sent == [None, "Bearer from-env", "Bearer given"]
    with pytest.raises(ServiceError, match="white space") as raised:
        do("get", DIGEST, token="secret\nX-Evil: 1")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8000", ""])
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="is no address of a service"):
        OralClient(url)


def test_pages_of_a_list_are_put_together(server: Server, do: Do) -> None:
    server.answers = [
        Answer(200, {"items": [adapter_json("a" * 64)], "next": "a" * 64}),
        Answer(200, {"items": [adapter_json("b" * 64)], "next": None}),
    ]
    assert [adapter.id[0] for adapter in do("list")] == ["a", "b"]
    assert server.asked[1].path == f"/v1/adapters?after={'a' * 64}"


def test_a_downloaded_adapter_is_a_peft_folder_with_the_digest_of_its_id(
    server: Server, do: Do, make_artifact: Callable[..., AdapterArtifact], tmp_path: Path
) -> None:
    artifact = make_artifact(1)
    serve_artifacts(server, artifact)
    folder = do("download", artifact.digest, tmp_path / "mine")
    assert read_folder(folder).digest == artifact.digest
    assert not list(tmp_path.glob(".*"))


def test_an_adapter_that_was_changed_on_the_way_is_not_written(
    server: Server, do: Do, make_artifact: Callable[..., AdapterArtifact], tmp_path: Path
) -> None:
    asked, sent = make_artifact(1), make_artifact(2)
    serve_artifacts(server, sent)
    honest = server.route
    assert honest is not None
    server.route = lambda request: honest(
        type(request)(request.method, request.path.replace(asked.digest, sent.digest), request.headers, b"")
    )
    with pytest.raises(ArtifactError, match=f"digest {sent.digest[:16]} for {asked.digest[:16]}"):
        do("download", asked.digest, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_download_leaves_another_adapters_folder_alone_and_asks_for_nothing(
    server: Server, do: Do, make_artifact: Callable[..., AdapterArtifact], tmp_path: Path
) -> None:
    mine, wanted = make_artifact(1), make_artifact(2)
    serve_artifacts(server, mine, wanted)
    folder = do("download", mine.digest, tmp_path / "mine")
    num_asked = len(server.asked)
    with pytest.raises(ArtifactError, match=f"mine holds adapter {mine.digest[:16]}, not {wanted.digest[:16]}"):
        do("download", wanted.digest, folder)
    assert len(server.asked) == num_asked and read_folder(folder).digest == mine.digest
    assert do("download", mine.digest, folder) == folder  # the same one again is no fault
    assert read_folder(folder).digest == mine.digest


def test_no_target_modules_and_a_bare_text_are_not_the_default(server: Server, do: Do) -> None:
    server.answers = [problem(422, "target_modules: at least 1 item")]
    with pytest.raises(ServiceError, match="at least 1 item"):
        do("generate", "x", base="b1", target_modules=[])
    assert server.asked[0].json["target_modules"] == []
    with pytest.raises(ServiceError, match="target_modules is the text 'q_proj'"):
        do("generate", "x", base="b1", target_modules="q_proj")


def test_the_token_does_not_follow_a_redirect_to_an_object_store(
    server: Server, do: Do, make_artifact: Callable[..., AdapterArtifact], tmp_path: Path
) -> None:
    artifact = make_artifact(1)
    with serving() as bucket:
        bucket.route = lambda asked: Answer(200, artifact.files()[asked.path.strip("/")])
        server.route = lambda asked: (
            Answer(307, b"", {"Location": f"{bucket.url}/{asked.path.rpartition('/')[2]}"})
            if "/files/" in asked.path
            else Answer(200, adapter_json(artifact.digest))
        )
        do("download", artifact.digest, tmp_path / "mine", token="secret")
    assert len(bucket.asked) == 3
    assert {asked.headers.get("authorization") for asked in bucket.asked} == {None}
    assert {asked.headers.get("authorization") for asked in server.asked} == {"Bearer secret"}
