"""The service's HTTP contract, in this process: a real tiny generator, a folder store, every route and every refusal."""

import asyncio
import dataclasses
import json
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_fixtures import build_place
from safetensors.torch import load_file, save_file
from service_fixtures import Service, open_test_service

from oral_ray.adapters.artifact import read_folder
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.config import LoraSettings
from oral_ray.objects import FileObjects
from oral_ray.store.generators import get_generator, promote_generator, put_generator
from serve import broker
from serve.jobs import JobStore
from serve.schema import GenerateRequest, Made, Problem

BODY = {"prompt": "Which metal is it?", "base": "v1"}


@pytest.fixture(scope="module")
def place(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never served itself, only copied."""
    return build_place(tmp_path_factory.mktemp("service"), tiny_bert)


@pytest.fixture(scope="module")
def service(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return open_test_service(Path(shutil.copytree(place, tmp_path_factory.mktemp("copy") / "place")))


@pytest.fixture
def fresh(place: Path, tmp_path: Path) -> Path:
    """A place of one's own, to break."""
    return Path(shutil.copytree(place, tmp_path / "place"))


def post(service: Service, body: Any = BODY, **headers: str) -> httpx.Response:
    return service.ask(lambda client: client.post("/v1/adapters", json=body, headers=headers))


def get(service: Service, path: str, **headers: str) -> httpx.Response:
    return service.ask(lambda client: client.get(path, headers=headers))


def count_made(service: Service, monkeypatch: pytest.MonkeyPatch, hold: threading.Event | None = None) -> list[Any]:
    """The conditions that reach a generator from now on; each waits for `hold` where there is one."""
    seen: list[Any] = []
    sample = service.worker.sample

    def counted(asked: Any) -> Any:
        seen.extend(condition for condition, _ in asked)
        assert hold is None or hold.wait(20)
        return sample(asked)

    monkeypatch.setattr(service.worker, "sample", counted)
    return seen


def test_an_equal_request_finds_the_stored_adapter_even_after_a_restart(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    first = open_test_service(fresh)
    made = post(first, BODY | {"seed": 11})
    assert (made.status_code, made.headers["cache-status"]) == (200, "oral-store; fwd=miss; stored")
    assert "sample;dur=" in made.headers["server-timing"]
    for service in (first, open_test_service(fresh)):
        seen = count_made(service, monkeypatch)
        again = post(service, BODY | {"seed": 11})
        assert again.json() == made.json() and again.headers["cache-status"] == "oral-store; hit" and not seen


def test_an_adapter_that_was_deleted_is_made_again(fresh: Path):
    made = post(open_test_service(fresh))
    shutil.rmtree(fresh / "store/adapters" / made.json()["id"])
    again = post(open_test_service(fresh))
    assert again.json()["id"] == made.json()["id"] and again.headers["cache-status"].endswith("stored")
    assert (fresh / "store/adapters" / made.json()["id"] / "adapter_config.json").is_file()


def test_equal_requests_on_their_way_are_generated_once(service: Service, monkeypatch: pytest.MonkeyPatch):
    seen = count_made(service, monkeypatch)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/v1/adapters", json=BODY | {"seed": 12}) for _ in range(8)))

    answers = service.ask(talk)
    assert {answer.status_code for answer in answers} == {200} and len({answer.json()["id"] for answer in answers}) == 1
    assert len(seen) == 1


def test_a_batched_answer_is_the_single_one_up_to_rounding(service: Service):
    asked = [
        service.condition(prompt=prompt, base="v1", seed=seed, strength=strength)
        for prompt, seed, strength in (
            ("One task.", 50, 1.0),
            ("Another one, longer.", 51, 0.5),
            ("One task.", 52, 2.0),
        )
    ]
    batched = service.make(asked)
    for condition, together in zip(asked, batched, strict=True):
        [alone] = service.make([condition])
        assert isinstance(alone, Made) and isinstance(together, Made) and together.batch_size == 3
        left, right = (tensors(service, made.adapter.id) for made in (alone, together))
        assert left.keys() == right.keys()
        assert all(((left[name] - right[name]).abs().max() < 1e-5) for name in left)


def test_one_condition_that_cannot_be_met_fails_alone_in_its_batch(service: Service):
    good = service.condition(prompt="a task", base="v1", seed=60)
    lost = good.base.model_copy(update={"fingerprint": "0" * 32})  # it was replaced since the ingress looked
    made, gone = service.make([good, dataclasses.replace(good, base=lost)])
    assert isinstance(made, Made) and isinstance(gone, Problem) and gone.status == 404 and "replaced" in gone.detail


def test_a_base_that_only_gives_values_that_are_not_finite_fails_alone_in_its_batch(fresh: Path):
    broken = Path(shutil.copytree(fresh / "store/bases/v1", fresh / "store/bases/nan"))
    weights = load_file(broken / "model.safetensors")
    save_file({name: tensor.fill_(float("nan")) for name, tensor in weights.items()}, broken / "model.safetensors")
    service = open_test_service(fresh)
    good, bad = service.make([service.condition(prompt="a task", base=base) for base in ("v1", "nan")])
    assert isinstance(good, Made) and isinstance(bad, Problem) and "not finite" in bad.detail


def test_strength_multiplies_the_change_of_the_weights(service: Service):
    plain, double = (post(service, BODY | {"strength": s}).json() for s in (1.0, 2.0))
    assert (plain["strength"], double["strength"]) == (1.0, 2.0)
    norms = [
        [row["norm"] for row in get(service, f"/v1/adapters/{a['id']}/report").json()["norms"]] for a in (plain, double)
    ]
    assert norms[0] and norms[1] == pytest.approx([2 * norm for norm in norms[0]], rel=1e-5)


def test_the_target_modules_of_an_answer_can_be_sent_back(service: Service):
    made = post(service, BODY | {"seed": 14}).json()
    config = get(service, f"/v1/adapters/{made['id']}/files/adapter_config.json").json()
    for targets in (made["target_modules"], config["target_modules"][::-1], ["v", "q"], ["self.query", "value"]):
        again = post(service, BODY | {"seed": 14, "r": made["r"], "target_modules": targets})
        assert (again.status_code, again.json().get("id")) == (200, made["id"]), again.text
        assert again.headers["cache-status"] == "oral-store; hit"
    for targets in (["query"], ["query", "value", "key"], ["query", "valu"]):
        assert post(service, BODY | {"target_modules": targets}).status_code == 422


def test_kinds_of_the_corpus_are_offered_and_may_be_named_by_their_modules(fresh: Path):
    kind = {"r": 2, "lora_alpha": 4.0, "target_modules": ["q", "k", "v"], "last_layers": 1}
    service = open_test_service(fresh, f"corpus.kinds={toml([kind])}")
    base = service.catalog.base("v1")
    layout = AdapterLayout.of(base.spec, LoraSettings.model_validate(kind), service.catalog.card().spec.token_dim)
    card = dataclasses.replace(service.catalog.card(), layouts=frozenset({layout.digest}))
    service.catalog._cards = lambda recipe: card
    offered = get(service, "/v1/bases").json()["items"][0]["lora"]
    assert [choice["target_modules"] for choice in offered] == [["q", "v"], ["q", "k", "v"]]
    for targets in (["q", "k", "v"], list(layout.target_modules)):
        condition = service.condition(prompt="a task", base="v1", r=2, lora_alpha=4.0, target_modules=targets)
        assert condition.lora == LoraSettings.model_validate(kind)


def test_a_job_is_accepted_answered_and_found_by_its_id(service: Service):
    async def talk(client: httpx.AsyncClient) -> tuple[httpx.Response, Any]:
        accepted = await client.post("/v1/adapters", json=BODY | {"seed": 13}, headers={"prefer": "respond-async"})
        return accepted, await ended(client, accepted.headers["location"])

    accepted, job = service.ask(talk)
    assert (accepted.status_code, accepted.headers["preference-applied"]) == (202, "respond-async")
    assert job["status"] == "succeeded" and job["adapter"]["seed"] == 13
    assert get(service, f"/v1/adapters/{job['adapter']['id']}").json() == job["adapter"]


def test_large_requests_become_jobs_unless_the_client_would_wait(fresh: Path):
    service = open_test_service(fresh, "serve.wait_tokens=1")
    assert post(service).status_code == 202
    waited = post(service, BODY | {"seed": 1}, prefer="wait=20")
    assert (waited.status_code, waited.headers["preference-applied"]) == (200, "wait")


def test_what_takes_longer_than_the_client_waits_becomes_a_job(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    service, hold = open_test_service(fresh), threading.Event()
    seen = count_made(service, monkeypatch, hold)

    async def talk(client: httpx.AsyncClient) -> tuple[int, Any]:
        slow = await client.post("/v1/adapters", json=BODY, headers={"prefer": "wait=1"})
        hold.set()
        return slow.status_code, await ended(client, slow.headers["location"])

    status, job = service.ask(talk)
    assert status == 202 and job["status"] == "succeeded" and len(seen) == 1  # the one on its way, not another


def test_accepted_jobs_survive_a_restart(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    first, hold = open_test_service(fresh), threading.Event()
    count_made(first, monkeypatch, hold)

    async def accept(client: httpx.AsyncClient) -> str:
        answer = await client.post("/v1/adapters", json=BODY, headers={"prefer": "respond-async"})
        for task in first.broker._running.values():
            task.cancel()  # the process dies here
        return answer.headers["location"]

    where = first.ask(accept)
    hold.set()
    second = open_test_service(fresh)
    assert get(second, where).json()["status"] == "queued"
    assert second.ask(lambda _: second.broker.resume(min_age_s=60)) == 0  # who accepted it may be at work on it

    async def go_on(client: httpx.AsyncClient) -> tuple[int, Any]:
        return await second.broker.resume(), await ended(client, where)

    assert second.ask(go_on)[1]["status"] == "succeeded"
    assert second.ask(lambda _: second.broker.resume()) == 0
    assert not list((fresh / "store/jobs/open").glob("*.json"))


def test_a_cancelled_job_stays_cancelled(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    service, hold = open_test_service(fresh), threading.Event()
    count_made(service, monkeypatch, hold)

    async def talk(client: httpx.AsyncClient) -> list[str]:
        accepted = await client.post("/v1/adapters", json=BODY, headers={"prefer": "respond-async"})
        where = accepted.headers["location"]
        await asyncio.sleep(0.05)
        answers = [(await client.delete(where)).json()["status"]]
        hold.set()
        await asyncio.sleep(0.3)
        return [*answers, (await client.get(where)).json()["status"], (await client.delete(where)).json()["status"]]

    assert service.ask(talk) == ["cancelled"] * 3


def test_the_first_outcome_of_a_job_counts_whichever_ingress_brings_it(objects: FileObjects):
    jobs, other = JobStore(objects), JobStore(objects)
    job = jobs.create(GenerateRequest(prompt="a task", base="v1"), "anonymous", "")
    assert [one.id for one in other.open_jobs()] == [job.id]
    assert jobs.finish(job, None).status == "cancelled"
    assert other.finish(job, Problem(title="x", status=500, detail="late")).status == "cancelled"
    assert other.info(job.id).status == "cancelled" and not list(other.open_jobs())


def test_a_job_that_cannot_be_done_fails_with_its_problem(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    service = open_test_service(fresh, "serve.refresh_s=0")
    hold = threading.Event()
    count_made(service, monkeypatch, hold)

    async def talk(client: httpx.AsyncClient) -> Any:
        accepted = await client.post("/v1/adapters", json=BODY, headers={"prefer": "respond-async"})
        (fresh / "store/bases/v1").rename(fresh / "store/bases/v2")
        hold.set()
        return await ended(client, accepted.headers["location"])

    job = service.ask(talk)
    assert job["status"] == "failed" and job["problem"]["status"] == 404 and "v1" in job["problem"]["detail"]


def test_an_idempotency_key_names_one_request(service: Service):
    answers = [
        post(service, BODY | {"seed": seed}, **{"idempotency-key": "k1", "prefer": "respond-async"})
        for seed in (70, 70, 71)
    ]
    assert [answer.status_code for answer in answers][::2] == [202, 422]
    assert answers[1].status_code in (200, 202)  # done in the meantime, or the same job
    if answers[1].status_code == 202:
        assert answers[1].json()["id"] == answers[0].json()["id"]
    assert "Idempotency-Key" in answers[2].json()["detail"]


def test_the_generator_is_replaced_under_way_and_answers_say_whose_they_are(fresh: Path):
    service = open_test_service(fresh, "serve.refresh_s=0")
    before = post(service).json()
    swap(service)
    still_old = post(service, BODY | {"seed": 1}).json()  # until the new one is loaded
    service.worker.follow()
    after = post(service).json()
    assert [a["generator"] for a in (before, still_old, after)] == ["r1", "r1", "r2"] and after["id"] != before["id"]
    assert get(service, "/readyz").json()["generator"] == "r2"


def test_files_come_whole_or_by_range(service: Service, tmp_path: Path):
    made = post(service).json()
    for name in made["files"]:
        answer = get(service, f"/v1/adapters/{made['id']}/files/{name}")
        assert answer.status_code == 200 and int(answer.headers["content-length"]) == len(answer.content)
        (tmp_path / name).write_bytes(answer.content)
    assert read_folder(tmp_path).digest == made["id"]
    where, whole = (
        f"/v1/adapters/{made['id']}/files/adapter_model.safetensors",
        (tmp_path / "adapter_model.safetensors"),
    )
    data = whole.read_bytes()
    for wanted, part in {"bytes=0-7": data[:8], "bytes=8-": data[8:], "bytes=-5": data[-5:]}.items():
        answer = get(service, where, range=wanted)
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"].endswith(f"/{len(data)}")
    assert get(service, where, range="bytes=5-2,9-").status_code == 200
    past = get(service, where, range=f"bytes={len(data)}-")
    assert (past.status_code, past.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert get(service, where, **{"if-none-match": get(service, where).headers["etag"]}).status_code == 304


def test_files_on_s3_are_answered_by_a_link(tiny_bert: Path, s3_objects: Any, tmp_path: Path):
    place = build_place(tmp_path, tiny_bert)
    for path in (place / "store").rglob("*"):
        if path.is_file():
            s3_objects.put(str(path.relative_to(place / "store")), path.read_bytes())
    service = open_test_service(place, f"store.uri={s3_objects.uri}", "serve.presign_s=60")
    made = post(service).json()
    answer = get(service, f"/v1/adapters/{made['id']}/files/adapter_config.json")
    assert answer.status_code == 307
    assert httpx.get(answer.headers["location"]).json()["r"] == 2


def test_lists_are_paged_and_complete(service: Service):
    for seed in range(3):
        post(service, BODY | {"seed": 80 + seed})
    found, after = [], ""
    while after is not None:
        page = get(service, f"/v1/adapters?limit=2&after={after}").json()
        found, after = found + [item["id"] for item in page["items"]], page["next"]
    assert found == sorted(found) and len(found) == len(list(service.catalog.objects.list("adapters/"))) // 3


def test_what_there_is_can_be_read(service: Service):
    bases = get(service, "/v1/bases").json()["items"]
    assert [(base["id"], base["refusal"], base["lora"][0]["r"]) for base in bases] == [("v1", "", 2)]
    assert [model["id"] for model in get(service, "/v1/models").json()["data"]] == ["v1"]
    assert get(service, "/v1/releases").json() == {"items": []}
    assert get(service, "/healthz").json()["status"] == "ok"


def tensors(service: Service, digest: str) -> Any:
    from oral_ray.store.adapters import AdapterStore

    return AdapterStore(service.catalog.objects).get(digest).tensors


def toml(kinds: list[dict[str, Any]]) -> str:
    """A list of tables as an override writes it."""
    tables = (", ".join(f"{name} = {json.dumps(value)}" for name, value in kind.items()) for kind in kinds)
    return f"[{', '.join(f'{{{table}}}' for table in tables)}]"


async def ended(client: httpx.AsyncClient, where: str) -> Any:
    for _ in range(200):
        job = (await client.get(where)).json()
        if job["status"] != "queued":
            return job
        await asyncio.sleep(0.05)
    raise AssertionError(job)


def swap(service: Service, recipe: str = "r2") -> None:
    """Make another generator the current one."""
    import tempfile

    from oral_ray.generator.model import save_generator

    objects, name = service.catalog.objects, service.config.name
    old = get_generator(objects, service.worker.recipe)
    with tempfile.TemporaryDirectory() as folder:
        spec = old.spec.model_copy(update={"recipe": recipe})
        other = dataclasses.replace(old, spec=spec)
        for parameter in other.network.parameters():
            parameter.data.mul_(1.1).add_(0.01)
        save_generator(other, Path(folder))
        put_generator(objects, recipe, Path(folder))
    promote_generator(objects, name, recipe)


def test_an_ingress_remembers_the_latest_answers_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "MAX_KNOWN", 2)
    known: OrderedDict[str, int] = OrderedDict()
    for key in ("a", "b", "a", "c"):
        broker._remember(known, key, 0)
    assert list(known) == ["a", "c"]
