"""What the service tells of a released adapter is the release's: its task, the candidate that it won as, where it is."""

from pathlib import Path
from typing import Any

from cli_fixtures import build_place
from service_fixtures import open_test_service

from oral_ray.store.adapters import AdapterStore
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore


def test_a_released_adapter_has_the_task_and_arm_of_its_release(tiny_bert: Path, tmp_path: Path):
    service = open_test_service(build_place(tmp_path / "place", tiny_bert))

    def get(path: str) -> Any:
        return service.ask(lambda client: client.get(path)).json()

    body = {"prompt": "Which metal is it?", "base": "v1"}
    digest = service.ask(lambda client: client.post("/v1/adapters", json=body)).json()["id"]
    about = get(f"/v1/adapters/{digest}")
    assert (about["origin"], about["task"], about["arm"]) == ("generated", "", "")
    objects = service.catalog.objects
    uri = AdapterStore(objects).publish(digest, "published", "v1", "metals-1")
    adapter = ReleasedAdapter(
        task="metals", arm="generated-2", adapter_id="metals-1", digest=digest, uri=uri, score=1.0, scores={}
    )
    for name in ("one", "two"):
        ReleaseStore(objects).append(
            Release(base="v1", base_fingerprint="f", generator="r1", name=name, served_name="chat", adapters=(adapter,))
        )
    again = open_test_service(tmp_path / "place")

    def look(path: str) -> Any:
        return again.ask(lambda client: client.get(path)).json()

    for about in (look(f"/v1/adapters/{digest}"), *look("/v1/adapters")["items"]):
        if about["id"] == digest:
            assert (about["origin"], about["task"], about["arm"]) == ("generated", "metals", "generated-2")
    released = look("/v1/releases?base=v1")["items"]
    assert [(item["name"], item["served_name"], item["sequence"]) for item in released] == [
        ("one", "chat", 1),
        ("two", "chat", 1),
    ]
    assert released[0]["adapters"][0]["uri"] == f"{objects.uri}/published/v1/metals-1"
    assert look("/v1/releases")["items"] == released and look("/v1/releases?base=v2") == {"items": []}
