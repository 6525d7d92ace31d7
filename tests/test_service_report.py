"""The report of an adapter: near adapters of the corpus, whatever else lies there."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import build_place
from service_fixtures import Service, open_test_service

from oral_ray.adapters.artifact import AdapterArtifact, Provenance
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.records import Records


@pytest.fixture
def service(tiny_bert: Path, tmp_path: Path) -> Service:
    return open_test_service(build_place(tmp_path / "place", tiny_bert))


@pytest.fixture
def artifact(service: Service) -> AdapterArtifact:
    """A generated adapter whose report is asked for."""
    made = service.ask(lambda client: client.post("/v1/adapters", json={"prompt": "Which metal is it?", "base": "v1"}))
    return AdapterStore(service.catalog.objects).get(made.json()["id"])


def trained(service: Service, artifact: AdapterArtifact, factor: float, run: str, **config: Any) -> str:
    """Put an adapter of the corpus on record whose B is a multiple of the artifact's; its digest."""
    tensors = {name: factor * t if ".lora_B." in name else t for name, t in artifact.tensors.items()}
    where = Provenance(origin="trained", base="v1", base_fingerprint="f", task=run)
    other = AdapterArtifact(artifact.config | config, tensors, where)
    digest = AdapterStore(service.catalog.objects).put(other)
    Records(service.catalog.objects).commit("corpus", run, {"digests": [digest]})
    return digest


def report(service: Service, artifact: AdapterArtifact) -> Any:
    answer = service.ask(lambda client: client.get(f"/v1/adapters/{artifact.digest}/report"))
    assert answer.status_code == 200, answer.text
    return answer.json()


def near(told: Any) -> dict[str, float]:
    return {item["id"]: pytest.approx(item["distance"], abs=1e-3) for item in told["nearest"]}


def test_near_adapters_are_told_with_their_distance_nearest_first(service: Service, artifact: AdapterArtifact):
    double, half = trained(service, artifact, 2, "double"), trained(service, artifact, 0.5, "half")
    told = report(service, artifact)
    assert near(told) == {double: 0.5, half: 1.0} and told["skipped"] == []
    assert [item["id"] for item in told["nearest"]] == [double, half]


def test_distances_are_between_changes_of_the_weights_and_so_know_alpha(service: Service, artifact: AdapterArtifact):
    alpha = artifact.config["lora_alpha"]
    as_strong = trained(service, artifact, 2, "as-strong", lora_alpha=alpha * 2)
    assert near(report(service, artifact)) == {as_strong: 0.75}
    assert report(service, artifact)["norms"][0]["norm"] > 0


def test_a_damaged_adapter_of_the_corpus_is_named_and_the_others_are_compared(
    service: Service, artifact: AdapterArtifact
):
    sound, store = trained(service, artifact, 2, "sound"), Path(str(service.catalog.objects.root))
    broken = {factor: trained(service, artifact, factor, f"run-{factor}") for factor in (3, 4, 5)}
    weights = store / "adapters" / broken[3] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    (store / "adapters" / broken[4] / "adapter_config.json").write_text("{")
    (store / "adapters" / broken[5] / "adapter_config.json").unlink()
    (store / "records/corpus/garbled.json").write_bytes(b"\xff{")
    (store / "records/corpus/empty.json").write_text('{"digests": []}')
    zero = trained(service, artifact, 0, "zero")
    infinite = trained(service, artifact, float("inf"), "infinite")
    told = report(service, artifact)
    assert near(told) == {sound: 0.5}
    reasons = {item["run"]: (item["id"], item["reason"]) for item in told["skipped"]}
    assert {run: digest for run, (digest, _) in reasons.items()} == {
        "run-3": broken[3], "run-4": broken[4], "run-5": broken[5], "garbled": "", "empty": "", "zero": zero,
        "infinite": infinite,
    }  # fmt: skip
    for run, words in {
        "run-3": "changed or damaged", "run-4": "is damaged", "run-5": "no adapter", "garbled": "is damaged",
        "empty": "names no adapter", "zero": "changes nothing", "infinite": "not finite",
    }.items():  # fmt: skip
        assert words in reasons[run][1], (run, reasons[run])


def test_an_adapter_that_is_mended_is_compared_again(service: Service, artifact: AdapterArtifact):
    digest = trained(service, artifact, 2, "one")
    config = Path(str(service.catalog.objects.root)) / "adapters" / digest / "adapter_config.json"
    text = config.read_text()
    config.write_text("{")
    assert [item["id"] for item in report(service, artifact)["skipped"]] == [digest]
    config.write_text(text)
    assert near(report(service, artifact)) == {digest: 0.5}


def test_an_adapter_is_not_its_own_neighbour_under_any_name(service: Service, artifact: AdapterArtifact):
    trained(service, artifact, 1, "itself")
    for_another_base = trained(service, artifact, 1, "joint", base_model_name_or_path="v2")
    assert for_another_base != artifact.digest
    other = trained(service, artifact, 2, "other")
    trained(service, artifact, 2, "other-for-v2", base_model_name_or_path="v2")
    trained(service, artifact, 2, "other-again")
    told = report(service, artifact)
    assert len(told["nearest"]) == 1 and told["nearest"][0]["distance"] == pytest.approx(0.5, abs=1e-3)
    assert told["skipped"] == [] and other
    mine = dataclasses.replace(artifact, config=artifact.config | {"base_model_name_or_path": "v2"})
    assert mine.digest == for_another_base


def test_adapters_of_another_shape_are_passed_over_without_a_word(service: Service, artifact: AdapterArtifact):
    sound = trained(service, artifact, 2, "sound")
    fewer = {name: t for name, t in artifact.tensors.items() if ".0." not in name}
    smaller = AdapterArtifact(artifact.config, fewer, artifact.provenance)
    digest = AdapterStore(service.catalog.objects).put(smaller)
    Records(service.catalog.objects).commit("corpus", "smaller", {"digests": [digest]})
    told = report(service, artifact)
    assert near(told) == {sound: 0.5} and told["skipped"] == []


def test_a_store_that_is_away_is_no_damaged_adapter(
    service: Service, artifact: AdapterArtifact, monkeypatch: pytest.MonkeyPatch
):
    trained(service, artifact, 2, "one")
    objects = service.catalog.objects
    assert isinstance(objects, FileObjects)
    listed = objects.list

    def going(prefix: str) -> Any:
        found = list(listed(prefix))
        if prefix == "records/corpus/":
            objects.root.rename(objects.root.parent / "gone")
        return iter(found)

    monkeypatch.setattr(objects, "list", going)
    answer = service.ask(lambda client: client.get(f"/v1/adapters/{artifact.digest}/report"))
    assert answer.status_code == 503, answer.text
