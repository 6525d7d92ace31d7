"""The client and the service speak of the same things: fields by name and type, and a whole round over a real port."""

from pathlib import Path

import pytest
from cli_fixtures import build_place
from page_fixtures import on_a_port
from pydantic import BaseModel
from service_fixtures import open_test_service

from oral_ray.adapters.lora import load_strictly
from oral_ray.bases.loading import open_base
from oral_ray.cli import main
from oral_ray.client import OralClient, wire
from oral_ray.errors import ServiceError
from serve import schema

PAIRS = [
    (wire.Adapter, schema.AdapterInfo), (wire.AdapterPage, schema.AdapterPage), (wire.Job, schema.JobInfo),
    (wire.Base, schema.BaseInfo), (wire.BaseList, schema.BaseList), (wire.ReleasedAdapter, schema.ReleasedInfo),
    (wire.Release, schema.ReleaseInfo), (wire.ReleaseList, schema.ReleaseList), (wire.Fault, schema.Problem),
]  # fmt: skip


@pytest.mark.parametrize(("mine", "theirs"), PAIRS, ids=[mine.__name__ for mine, _ in PAIRS])
def test_every_field_that_the_client_reads_is_one_that_the_service_sends(
    mine: type[BaseModel], theirs: type[BaseModel]
) -> None:
    sent = {field.alias or name for name, field in theirs.model_fields.items()}
    assert mine.model_fields.keys() <= sent


@pytest.mark.parametrize("status", ["queued", "succeeded", "failed", "cancelled"])
def test_the_client_reads_jobs_and_releases_as_the_service_writes_them(status: str) -> None:
    adapter = {
        "id": "a" * 64, "uri": "s3://b/x", "origin": "generated", "base": "b1", "base_fingerprint": "f", "task": "",
        "prompt": "x", "seed": 0, "strength": 1.0, "generator": "g", "r": 2, "lora_alpha": 4.0, "target_modules": ["q"],
    }  # fmt: skip
    problem = schema.Problem(title="x", status=404, detail="gone", request_id="7")
    job = schema.JobInfo(
        id="1" * 32, status=status, request=schema.GenerateRequest(prompt="x", base="b1"), created_s=1.0,
        adapter=schema.AdapterInfo.model_validate(adapter), problem=problem,
    )  # fmt: skip
    read = wire.Job.model_validate_json(job.model_dump_json())
    assert read.status == status
    assert read.adapter is not None
    assert read.problem is not None
    assert (read.adapter.target_modules, read.problem.detail) == (("q",), "gone")
    released = schema.ReleasedInfo(
        task="t", arm="generated", adapter_id="t-1", digest="a" * 64, uri="u", score=0.5, scores={"base": 0.4}
    )
    release = schema.ReleaseInfo(base="b1", sequence=2, base_fingerprint="f", generator="g", adapters=(released,))
    answer = wire.ReleaseList.model_validate_json(schema.ReleaseList(items=(release,)).model_dump_json())
    assert (answer.items[0].sequence, answer.items[0].adapters[0].adapter_id) == (2, "t-1")


def test_a_client_generates_lists_and_downloads_what_peft_loads(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = build_place(tmp_path / "place", tiny_bert)
    with on_a_port(open_test_service(place).api) as url, OralClient(url, token="") as client:
        [base] = client.bases()
        made = client.generate("is it a cat or a dog?", base.id, seed=3)
        assert client.generate("is it a cat or a dog?", base.id, seed=3).id == made.id
        assert client.get(made.id) == made
        assert made.id in {adapter.id for adapter in client.list()}
        assert client.releases() == ()
        load_strictly(open_base(str(tiny_bert)), client.download(made.id, tmp_path / "mine"))
        with pytest.raises(ServiceError, match="v9") as refused:
            client.generate("x", "v9")
        assert refused.value.status == 404
        assert refused.value.request_id
        command = ["generate", "--url", url, "--prompt", "is it a cat or a dog?", "--base", "v1", "--seed", "3"]
        assert main([*command, "--out", str(tmp_path / "cli")]) == 0
        assert made.id in capsys.readouterr().out
    assert (tmp_path / "cli/adapter_config.json").read_bytes() == (tmp_path / "mine/adapter_config.json").read_bytes()
