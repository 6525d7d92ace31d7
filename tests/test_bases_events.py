"""Events are hints of where to look: named by S3 through a real queue, decided by the catalog, harmless when wrong."""

import json
import os
from pathlib import Path

import pytest

from oral_ray.bases.catalog import discover
from oral_ray.bases.events import EventQueue, Hint, changed_bases, named_uris
from oral_ray.bases.landed import list_landed
from oral_ray.errors import StoreError
from oral_ray.objects import FileObjects, S3Objects


def test_an_upload_to_the_bucket_comes_through_the_queue_and_leads_the_catalog_there(
    s3_objects: S3Objects, tiny_bert: Path
):
    import boto3

    url = boto3.client("sqs").create_queue(QueueName=s3_objects.bucket)["QueueUrl"]
    queue_arn = f"arn:aws:sqs:us-east-1:123456789012:{s3_objects.bucket}"
    boto3.client("s3").put_bucket_notification_configuration(
        Bucket=s3_objects.bucket,
        NotificationConfiguration={
            "QueueConfigurations": [{"QueueArn": queue_arn, "Events": ["s3:ObjectCreated:*"]}],
        },
    )
    for path in sorted(tiny_bert.iterdir()):
        s3_objects.upload(path, f"bases/v 1+ü/{path.name}")
        s3_objects.upload(path, f"bases/v2/{path.name}")
    queue, changed = EventQueue(url), set()
    while hints := queue.wait(1):
        changed |= changed_bases(hints, s3_objects.uri, "bases")
        queue.done(hints)
    assert changed == {"v 1+ü", "v2"}
    records, skipped = discover(s3_objects, "bases", 0.0, only=changed)
    assert [record.id for record in records] == ["v2"]
    assert [item.id for item in skipped] == ["v 1+ü"]


def test_a_hint_makes_the_catalog_look_there_only_and_forget_nothing_else(s3_objects: S3Objects, tiny_bert: Path):
    for base_id in ("v1", "v2"):
        for path in tiny_bert.iterdir():
            s3_objects.upload(path, f"bases/{base_id}/{path.name}")
    everything = discover(s3_objects, "bases", 0.0)
    assert [record.id for record in discover(s3_objects, "bases", 0.0, only=["v2", "gone"])[0]] == ["v2"]
    assert discover(s3_objects, "bases", 0.0) == everything
    s3_objects.delete("bases/v1/model.safetensors")
    assert discover(s3_objects, "bases", 0.0, only=["v2"])[1] == []
    assert [item.id for item in discover(s3_objects, "bases", 0.0)[1]] == ["v1"]


@pytest.mark.parametrize(
    "body", ["", "no json", "[]", "7", "null", '{"Records": 1}', '{"Records": [{"s3": {}}]}', '{"Message": 5}', "{}"]
)
def test_a_message_that_is_no_event_names_nothing(body: str):
    assert named_uris(body) == ()


def test_an_event_by_way_of_a_topic_names_its_object():
    event = {"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "p/bases/v+1/a%2Bb"}}}]}
    assert named_uris(json.dumps({"Message": json.dumps(event)})) == ("s3://b/p/bases/v 1/a+b",)


def test_only_what_lies_in_a_checkpoint_of_this_store_is_a_hint():
    uris = ("s3://b/p/bases/v1/x", "s3://b/p/bases/loose", "s3://b/other/bases/v2/x", "s3://c/p/bases/v3/x")
    assert changed_bases([Hint(uris, "r")], "s3://b/p", "bases") == {"v1"}


def test_a_queue_that_is_not_there_is_named(s3_objects: S3Objects):
    with pytest.raises(StoreError, match=r"queue http.*/nowhere does not answer: .*check regenerate.events"):
        EventQueue(f"{os.environ['AWS_ENDPOINT_URL']}/123456789012/nowhere").wait(0)


@pytest.mark.parametrize("name", ["..", "", "a/b/../c", "\ud800", "x" * 2000, "a\n"])
def test_a_made_up_name_in_an_event_is_looked_for_nowhere(objects: FileObjects, name: str):
    assert discover(objects, "bases", 0.0, only={name}) == ([], [])
    assert list_landed(Unasked(), "bases", {name}) == {}  # type: ignore[arg-type]


class Unasked:
    """A store that must not be asked."""


def test_a_message_nested_without_end_is_dropped():
    assert named_uris("[" * 100_000) == ()
