"""The jobs on a real Ray: whole path on a folder and on S3, a worker killed on the way, the published adapter used."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from pipeline import finished, job

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.cli import main
from oral_ray.evaluation.arms.registry import arm_names
from oral_ray.objects import open_objects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.generators import current_generator, generator_manifest, read_metrics


def test_the_quickstart_survives_a_killed_worker_and_writes_every_table(whole_path: tuple[Path, Path, str]) -> None:
    _, out, printed = whole_path
    scores = pd.read_parquet(out / "scores.parquet")
    assert {"base", "base_seen", "task", "arm", "seed", "metric", "value", "n"} <= set(scores.columns)
    assert scores["base_seen"].dtype == bool
    assert set(scores["arm"]) == set(arm_names())
    assert dict(scores.groupby("base")["base_seen"].first()) == {"tiny-t0": True, "tiny-t1": True, "tiny-t2": False}
    assert scores["value"].between(0, 1).all()
    summary = json.loads((out / "summary.json").read_text())
    assert {"base", "task", "arm", "adapter_id", "uri", "path"} <= set(summary["published"][0])
    assert [item["base"] for item in summary["published"]] == ["tiny-t2"] * 2
    assert summary["wall_s"]["train"] > 0
    assert summary["peak_rss_bytes"] > 1e8
    assert (out / "report.html").stat().st_size > 10_000
    assert "tiny-t2 (UNSEEN)" in printed


def test_training_resumed_from_its_checkpoint_and_not_from_the_start(whole_path: tuple[Path, Path, str]) -> None:
    objects = open_objects(str(whole_path[0]))
    metrics = read_metrics(objects, str(current_generator(objects, "tiny")))
    steps = [row["step"] for row in metrics]
    assert steps == sorted(set(steps))
    assert steps[-1] == 304


def test_the_same_run_on_s3_without_a_kill_makes_the_same_bytes(
    whole_path: tuple[Path, Path, str], s3_endpoint: str, tiny_bert: Path, tmp_path: Path
) -> None:
    import boto3

    access = {
        "AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="test",
                 aws_secret_access_key="test").create_bucket(Bucket="whole-path")  # fmt: skip
    finished(job("quickstart", tiny_bert, "s3://whole-path/store", tmp_path / "out", **access))
    one, two = (json.loads((out / "summary.json").read_text()) for out in (whole_path[1], tmp_path / "out"))
    assert one["generator"] == two["generator"]
    assert [item["adapter_id"] for item in one["published"]] == [item["adapter_id"] for item in two["published"]]
    left, right = (pd.read_parquet(out / "scores.parquet") for out in (whole_path[1], tmp_path / "out"))
    assert set(left["digest"]) == set(right["digest"])
    pd.testing.assert_frame_equal(left, right)


def test_a_finished_job_does_nothing_when_it_is_run_again(whole_path: tuple[Path, Path, str], tiny_bert: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole_path[0].rglob("*") if path.is_file()}
    row = json.loads(finished(job("train", tiny_bert, str(whole_path[0]), whole_path[1])))
    assert row["step"] == 304
    night = whole_path[1] / "night.json"
    assert "not due" in finished(
        job("regenerate", tiny_bert, str(whole_path[0]), whole_path[1], "--summary", str(night))
    )
    summary = json.loads(night.read_text())
    assert {item["action"] for item in summary["plan"]} == {"skip"}
    assert len(summary["published"]) == 2
    assert before == {path: path.stat().st_mtime_ns for path in whole_path[0].rglob("*") if path.is_file()}


def test_the_published_adapter_loads_in_plain_peft_and_scores_what_the_table_says(
    whole_path: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    folder, out, _ = whole_path
    published = json.loads((out / "summary.json").read_text())["published"][0]
    base = folder / "bases" / published["base"]
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), published["path"])
    assert sum("lora_" in name for name, _ in model.named_parameters()) == 8
    assert main(["verify", published["path"], "--base", str(base)]) == 0
    task = published["task"]
    assert main(["score", published["path"], "--base", str(base), "--task", task, "--limit", "20"]) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])["value"]
    scores = pd.read_parquet(out / "scores.parquet")
    cell = (scores["base"] == published["base"]) & (scores["task"] == task) & (scores["arm"] == published["arm"])
    assert value == scores[cell]["value"].iloc[0]
    pulled = tmp_path / "pulled"
    name = f"{published['base']}/{published['adapter_id']}"
    assert main(["pull", name, str(pulled), "--store", str(folder)]) == 0
    assert {path.name for path in pulled.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_a_corpus_starts_from_the_adapter_that_the_job_multitask_names(
    whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole_path[0], tmp_path / "store")
    named = json.loads(finished(job("multitask", tiny_bert, str(tmp_path / "store"), tmp_path / "out")))
    scores = pd.read_parquet(whole_path[1] / "scores.parquet")
    assert {*named.values()} == {*scores[scores["arm"] == "multitask"]["digest"]}
    start = f"corpus.start={named['tiny-t1']}"
    row = json.loads(finished(job("corpus", tiny_bert, str(tmp_path / "store"), tmp_path / "out", start)))
    assert row["runs"] == 4
    runs = [len(list((folder / "records" / "corpus").iterdir())) for folder in (whole_path[0], tmp_path / "store")]
    assert runs[1] == runs[0] + 4


def test_unseen_tasks_are_scored_in_every_arm_and_were_trained_on_in_none(
    whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole_path[0], tmp_path / "store")
    printed = finished(job("evaluate", tiny_bert, str(tmp_path / "store"), tmp_path / "out"))
    assert "tasks that no training saw:" in printed
    scores = pd.read_parquet(tmp_path / "out" / "unseen" / "scores.parquet")
    assert set(scores["task"]) == {"not-kind/bird", "kind/plant"} and set(scores["arm"]) == set(arm_names())
    runs = [json.loads(path.read_text())["run"] for path in (tmp_path / "store" / "records" / "static").glob("*.json")]
    shared = [run for run in runs if run["arm"].startswith("multitask")]  # the others are trained on their own task
    used = {task for run in shared for task in (*run["tasks"], *run["further"])}
    assert used == {
        prefix + task
        for prefix in ("", "instructed/")
        for task in ("wordnet/matter", "wordnet/mind", "kind/tree", "not-kind/fluid")
    }, "kind/bird asks about the examples of an unseen task"


def test_every_stored_adapter_is_what_its_digest_says(whole_path: tuple[Path, Path, str]) -> None:
    adapters = AdapterStore(open_objects(str(whole_path[0])))
    digests = list(adapters.list())
    assert len(digests) > 20
    assert all(torch.isfinite(t).all() for digest in digests for t in adapters.get(digest).tensors.values())


def test_a_lost_generator_manifest_means_training_again(whole_path: tuple[Path, Path, str]) -> None:
    objects = open_objects(str(whole_path[0]))
    recipe = str(current_generator(objects, "tiny"))
    assert generator_manifest(objects, recipe) is not None
    assert generator_manifest(objects, "0" * 32) is None


def test_a_corpus_adapter_that_is_not_finite_stops_the_shards_and_leaves_the_store_as_it_was(
    whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole_path[0], tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "shards")
    objects = open_objects(str(tmp_path / "store"))
    records = list((tmp_path / "store" / "records" / "corpus").glob("*.json"))
    entries = [json.loads(record.read_text()) for record in records]
    digest = next(entry["digests"][0] for entry in entries if entry["run"]["bases"] == ["tiny-t0"])
    good = AdapterStore(objects).get(digest)
    bad = AdapterArtifact(good.config, {k: t * torch.nan for k, t in good.tensors.items()}, good.provenance)
    AdapterStore(objects).put(bad)
    for record in records:
        record.write_text(record.read_text().replace(good.digest, bad.digest))
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    process = job("shards", tiny_bert, str(tmp_path / "store"), tmp_path / "out")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: adapter {bad.digest[:12]}")
    assert "not finite" in last
    assert before == {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}


def test_a_run_that_is_out_of_time_says_how_to_go_on_and_exits_with_75(tiny_bert: Path, tmp_path: Path) -> None:
    process = job("corpus", tiny_bert, str(tmp_path / "store"), tmp_path / "out", "cluster.stop_after_s=0.001")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 75
    assert stderr.splitlines()[-1].startswith("error: bases: 0 of 1 done when cluster.stop_after_s=0.001")
    assert "run the same command again" in stderr
