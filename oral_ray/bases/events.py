"""S3 events from an SQS queue, as hints of which checkpoints have changed.

A hint only says where to look: the catalog lists what is there and decides by the same rules. So a hint that is lost,
doubled, late or made up does no harm, as long as everything is listed now and then.

    queue = EventQueue("https://sqs.eu-central-1.amazonaws.com/1234/landings")
    hints = queue.wait(20.0)
    records, skipped = discover(objects, "bases", 60.0, only=changed_bases(hints, objects.uri, "bases"))
    queue.done(hints)
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from oral_ray.errors import StoreError

logger = logging.getLogger(__name__)
MAX_WAIT_S = 20  # what SQS allows
_MAX_MESSAGES = 10


@dataclass(frozen=True, slots=True)
class Hint:
    """One message: the uris of the objects that it names, and what it takes to delete it."""

    uris: tuple[str, ...]
    receipt: str


class EventQueue:
    """An SQS queue by its URL. Endpoint, region and keys come from the environment, as boto3 reads them."""

    def __init__(self, url: str) -> None:
        import boto3

        self._url = url
        self._client: Any = boto3.client("sqs")

    def wait(self, seconds: float) -> list[Hint]:
        """The messages that are there, or come within so many seconds (at most 20); none is lost before `done`."""
        with self._errors():
            answer = self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=_MAX_MESSAGES,
                WaitTimeSeconds=min(math.ceil(seconds), MAX_WAIT_S),
            )
        return [Hint(named_uris(item["Body"]), item["ReceiptHandle"]) for item in answer.get("Messages", ())]

    def done(self, hints: Sequence[Hint]) -> None:
        """Delete messages that were acted upon."""
        for hint in hints:
            with self._errors():
                self._client.delete_message(QueueUrl=self._url, ReceiptHandle=hint.receipt)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreError(
                f"queue {self._url} does not answer: {error}; check regenerate.events, region and keys"
            ) from None


def named_uris(body: str) -> tuple[str, ...]:
    """`s3://bucket/key` of every record of an S3 event notification; none for any other message, which is logged."""
    try:
        event = json.loads(body)
        event = json.loads(event["Message"]) if "Message" in event else event  # S3 -> SNS -> SQS
        records = [record["s3"] for record in event.get("Records", ())]
        return tuple(f"s3://{s3['bucket']['name']}/{unquote_plus(s3['object']['key'])}" for s3 in records)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        logger.warning("a message on the queue is no S3 event and is dropped: %.200s", body)
        return ()


def changed_bases(hints: Sequence[Hint], store_uri: str, prefix: str) -> set[str]:
    """The ids under `<store>/<prefix>/` in which something has changed."""
    where = f"{store_uri}/{prefix}/"
    uris = [uri.removeprefix(where) for hint in hints for uri in hint.uris if uri.startswith(where)]
    return {uri.partition("/")[0] for uri in uris if "/" in uri}
