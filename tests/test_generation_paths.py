"""The service, the command line and the nightly job reach weights by one method: the same adapter, streamed if large."""

import contextlib
import io
import json
import time
from pathlib import Path

import pytest
from cli_fixtures import build_place
from service_fixtures import open_test_service

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.cli import main
from oral_ray.config import load_config
from oral_ray.evaluation import cells
from oral_ray.generation import factory as factory_module
from oral_ray.generation.catalog import GeneratorCatalog
from oral_ray.objects import FileObjects, open_objects
from oral_ray.store.adapters import AdapterStore
from serve.schema import Made

PROMPT, SEED = "Is it a metal or a stone?", 7


def by_the_service(place: Path, bert: Path) -> str:
    service = open_test_service(place)
    condition = service.condition(prompt=PROMPT, base="v1", seed=SEED)
    [sampled] = service.worker.sample([(condition, time.perf_counter())])
    is_stored = factory_module.PIECE_TOKENS == 20  # by the thread that samples, for no other one may
    assert isinstance(sampled, Made) == is_stored
    answer = sampled if isinstance(sampled, Made) else service.worker.store(sampled)  # type: ignore[arg-type]
    assert isinstance(answer, Made)
    return answer.adapter.id


def by_the_command_line(place: Path, bert: Path) -> str:
    argv = ["generate", f"--config={place}/run.toml", f"--store={place}/store", f"--prompt={PROMPT}", "--base=v1"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*argv, f"--seed={SEED}"]) == 0
    return str(json.loads(said.getvalue().splitlines()[-1])["id"])


def by_the_nightly_job(place: Path, bert: Path) -> str:
    settings = (f"store.uri={place}/store", f"condition.text_encoder={bert}", "condition.num_components=2")
    config = load_config(place / "run.toml", settings)
    base = GeneratorCatalog(config, open_objects(config.store)).base("v1")
    request = cells.Request(
        arm="generated", base="v1", task="t", prompt=PROMPT, seed=SEED, recipe="r1", num_steps=2
    )  # fmt: skip
    first, second = cells.generate(config, [request, request.model_copy(update={"arm": "held_out"})], {"v1": base})
    assert first == second
    return first


WAYS = (by_the_service, by_the_command_line, by_the_nightly_job)


@pytest.mark.parametrize("piece_tokens", [20, 2048])
def test_all_ways_make_the_same_adapter_and_a_large_one_is_never_put_together_in_memory(
    piece_tokens: int, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_together: list[str] = []
    files = AdapterArtifact.files

    def counted(artifact: AdapterArtifact) -> dict[str, bytes]:
        put_together.append(artifact.digest)
        return files(artifact)

    monkeypatch.setattr(factory_module, "PIECE_TOKENS", piece_tokens)
    found = set()
    for way in WAYS:
        place = tmp_path / way.__name__
        place.mkdir()
        build_place(place, tiny_bert)
        with monkeypatch.context() as patch:
            patch.setattr(AdapterArtifact, "files", counted)
            found.add(way(place, tiny_bert))
        [digest] = found
        assert AdapterStore(FileObjects(place / "store")).is_whole(digest)
    assert len(put_together) == (0 if piece_tokens == 20 else len(WAYS))
