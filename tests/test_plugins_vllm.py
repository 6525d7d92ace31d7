"""vLLM asks for an adapter that it does not have, by digest, by published name or by prompt, and receives a folder."""

import asyncio
import hashlib
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from loopback import Answer, Asked, Server, problem, serve_artifacts, serving
from vllm_interface import Engine, LoRARequest, Registry, install

from oral_ray.adapters.artifact import AdapterArtifact, read_folder, rebased
from oral_ray.errors import OralError
from oral_ray.objects import FileObjects
from oral_ray.plugins.vllm import register, stable_id
from oral_ray.store.adapters import AdapterStore, Use
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore

Make = Callable[..., AdapterArtifact]
SERVED = "/models/small-llama"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return install(monkeypatch)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def resolve(registry: Registry, *names: str, model: str = SERVED) -> list[LoRARequest | None]:
    async def run() -> list[LoRARequest | None]:
        engine = Engine(registry, model)
        return [await engine.resolve(name) for name in names]

    return asyncio.run(run())


def release(objects: FileObjects, artifact: AdapterArtifact, adapter_id: str = "spam-1") -> str:
    """Store, publish and release an adapter, as the nightly job does."""
    digest = AdapterStore(objects).put(artifact)
    uri = AdapterStore(objects).publish(digest, "published", "small-llama", adapter_id)
    adapter = ReleasedAdapter(
        task="spam", arm="generated", adapter_id=adapter_id, digest=digest, uri=uri, score=1.0, scores={}
    )
    ReleaseStore(objects).append(
        Release(base_id="small-llama", base_fingerprint="f", generator="g", name="r", adapters=(adapter,))
    )
    return digest


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    return {"ORAL_CACHE": str(tmp_path / "cache"), **settings}


def test_adapters_come_from_the_store_by_digest_and_by_published_name(
    registry: Registry, objects: FileObjects, make_artifact: Make, tmp_path: Path
) -> None:
    digest = release(objects, make_artifact(1))
    register(environment(tmp_path, ORAL_STORE=objects.uri))
    by_digest, by_name = resolve(registry, digest, "spam-1")
    assert by_digest is not None
    assert by_name is not None
    assert (by_digest.lora_name, by_name.lora_name) == (digest, "spam-1")
    assert by_digest.lora_path == by_name.lora_path
    assert by_digest.lora_int_id == by_name.lora_int_id == stable_id(digest)
    assert read_folder(Path(by_digest.lora_path)).digest == digest


@pytest.mark.parametrize("name", ["f" * 64, "unknown-name", "../../etc/passwd", "prompt:a task", "small-llama", ""])
def test_what_the_store_does_not_have_is_left_to_other_resolvers(
    registry: Registry, objects: FileObjects, make_artifact: Make, tmp_path: Path, name: str
) -> None:
    release(objects, make_artifact(1))
    register(environment(tmp_path, ORAL_STORE=objects.uri))
    assert resolve(registry, name) == [None]


def test_a_prompt_is_generated_by_the_service_with_the_token(
    registry: Registry, server: Server, make_artifact: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(1)
    serve_artifacts(server, artifact)
    register(environment(tmp_path, ORAL_URL=server.url, ORAL_TOKEN="t0ken"))
    [found] = resolve(registry, "prompt:Tell spam from mail.")
    assert found is not None
    assert found.lora_name == "prompt:Tell spam from mail."
    assert read_folder(Path(found.lora_path)).digest == artifact.digest
    assert server.asked[0].json == {"prompt": "Tell spam from mail.", "base": "small-llama", "seed": 0}
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer t0ken"}


def test_the_service_names_published_adapters_and_says_when_there_is_none(
    registry: Registry, server: Server, make_artifact: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(1)
    serve_artifacts(server, artifact)
    adapter = {
        "task": "spam", "arm": "generated", "adapter_id": "spam-1", "digest": artifact.digest, "uri": "", "score": 1.0
    }  # fmt: skip
    releases = {"items": [{"base": "small-llama", "sequence": 1, "adapters": [adapter]}]}
    other = server.route
    assert other is not None
    server.route = lambda asked: Answer(200, releases) if "/v1/releases" in asked.path else other(asked)
    register(environment(tmp_path, ORAL_URL=server.url))
    found, missing, unknown = resolve(registry, "spam-1", "spam-2", "e" * 64)
    assert found is not None
    assert (missing, unknown) == (None, None)
    assert server.asked[0].path == "/v1/releases?base=small-llama"


def test_a_service_that_fails_is_an_error_and_not_a_missing_adapter(
    registry: Registry, server: Server, tmp_path: Path
) -> None:
    server.answers = [problem(422, "prompt is too long")]
    register(environment(tmp_path, ORAL_URL=server.url))
    with pytest.raises(OralError, match="prompt is too long"):
        resolve(registry, "prompt:a task")


def test_an_adapter_is_fetched_once_and_again_when_its_files_were_changed(
    registry: Registry, server: Server, make_artifact: Make, tmp_path: Path
) -> None:
    artifact = make_artifact(1)
    serve_artifacts(server, artifact)
    register(environment(tmp_path, ORAL_URL=server.url))
    [first] = resolve(registry, artifact.digest)
    assert first is not None
    fetched = len(server.asked)
    assert fetched > 1
    assert resolve(registry, artifact.digest) == [first]
    assert len(server.asked) == fetched
    weights = Path(first.lora_path) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve(registry, artifact.digest) == [first]
    assert read_folder(Path(first.lora_path)).digest == artifact.digest


def test_an_adapter_of_another_base_is_refused_unless_the_base_is_named(
    registry: Registry, objects: FileObjects, make_artifact: Make, tmp_path: Path
) -> None:
    digest = release(objects, make_artifact(1))
    register(environment(tmp_path, ORAL_STORE=objects.uri))
    assert resolve(registry, digest, model="org/other-base") == [None]
    registry.resolvers.clear()
    register(environment(tmp_path, ORAL_STORE=objects.uri, ORAL_BASE="small-llama"))
    assert resolve(registry, digest, "spam-1", model="org/other-base") != [None, None]


def release_for(objects: FileObjects, artifact: AdapterArtifact, base: str, served_name: str) -> tuple[str, str]:
    """Release an adapter of another base for a base, as the nightly job does; the digests before and after."""
    moved = rebased(artifact, base, "f", served_name)
    store = AdapterStore(objects)
    source, digest = store.put(artifact), store.put(moved)
    uri = store.publish(digest, "published", base, "spam-1", use=Use(moved.provenance, "spam", "reuse_new"))
    adapter = ReleasedAdapter(
        task="spam", arm="reuse_new", adapter_id="spam-1", digest=digest, uri=uri, score=1.0, scores={}
    )
    releases = ReleaseStore(objects)
    releases.append(
        Release(
            base_id=base,
            base_fingerprint="f",
            generator="g",
            name="r",
            served_name=served_name or base,
            adapters=(adapter,),
        )
    )
    return source, digest


@pytest.mark.parametrize(
    ("served_name", "model", "setting"),
    [
        ("", "/models/t3", {}),
        ("t3", "t3", {}),
        ("chat", "chat", {}),
        ("/models/any/where", "/models/any/where", {}),
        ("org/t3", "org/t3", {}),
        ("chat", "/models/snapshot-1", {"ORAL_BASE": "t3,chat"}),
        ("", "/models/snapshot-1", {"ORAL_BASE": "t3"}),
    ],
)
def test_what_is_released_for_the_served_base_is_taken_whatever_base_it_was_made_for(
    registry: Registry, objects: FileObjects, make_artifact: Make, tmp_path: Path, served_name: str, model: str,
    setting: dict[str, str],
) -> None:  # fmt: skip
    source, digest = release_for(objects, make_artifact(1), "t3", served_name)
    register(environment(tmp_path, ORAL_STORE=objects.uri, **setting))
    by_name, by_digest, of_another_base = resolve(registry, "spam-1", digest, source, model=model)
    assert by_name is not None and by_digest is not None and of_another_base is None
    found = read_folder(Path(by_name.lora_path))
    assert found.digest == digest
    assert found.config["base_model_name_or_path"] == (served_name or "t3")


def test_a_base_that_is_served_under_another_name_is_found_by_the_service_too(
    registry: Registry, server: Server, make_artifact: Make, tmp_path: Path
) -> None:
    artifact = rebased(make_artifact(1), "t3", "f", "chat")
    serve_artifacts(server, artifact)
    adapter = {
        "task": "spam", "arm": "generated", "adapter_id": "spam-1", "digest": artifact.digest, "uri": "", "score": 1.0
    }  # fmt: skip
    released = {"base": "t3", "served_name": "chat", "sequence": 1, "adapters": [adapter]}
    other = server.route
    assert other is not None

    def route(asked: Asked) -> Answer:
        if "/v1/releases" in asked.path:
            return Answer(200, {"items": [] if "base=chat" in asked.path else [released]})
        if asked.method == "POST" and asked.json["base"] != "t3":
            return problem(404, "base 'chat' is not in the store")
        return other(asked)

    server.route = route
    register(environment(tmp_path, ORAL_URL=server.url))
    by_name, by_digest, by_prompt = resolve(registry, "spam-1", artifact.digest, "prompt:spam?", model="chat")
    assert by_name is not None and by_digest is not None and by_prompt is not None


def test_without_settings_nothing_is_registered_and_twice_is_once(registry: Registry, tmp_path: Path) -> None:
    register({})
    assert not registry.resolvers
    for _ in range(2):
        register(environment(tmp_path, ORAL_STORE=str(tmp_path)))
        assert list(registry.resolvers) == ["oral_ray"]
    first = registry.resolvers["oral_ray"]
    register(environment(tmp_path, ORAL_STORE=str(tmp_path)))
    assert registry.resolvers["oral_ray"] is first


def test_ids_are_positive_differ_and_fit_into_32_bits() -> None:
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(256)]
    ids = {stable_id(digest) for digest in [*digests, "0" * 64, "f" * 64]}
    assert len(ids) == 258
    assert all(1 <= i < 2**31 for i in ids)


def test_the_package_declares_the_entry_point_that_vllm_looks_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["vllm.general_plugins"].items()
    assert EntryPoint(name, value, "vllm.general_plugins").load() is register
