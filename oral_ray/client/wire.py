"""What the service answers, as far as the client reads it: fields that a newer service adds are passed over.

The service's own contract is serve/schema.py; tests/test_client_wire.py holds the two together.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Adapter(_Answer):
    """A stored adapter; `id` is the digest of its content."""

    id: str
    uri: str
    base: str
    base_fingerprint: str
    prompt: str
    seed: int
    generator: str
    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    files: tuple[str, ...]


class AdapterPage(_Answer):
    """Adapters by id; `next` is where the following page starts, None at the end."""

    items: tuple[Adapter, ...]
    next: str | None


class Fault(_Answer):
    """The error of a job, or of a refused request (RFC 9457)."""

    title: str
    status: int
    detail: str
    request_id: str = ""


class Job(_Answer):
    """A request that is answered later; `adapter` once it has succeeded, `problem` once it has failed."""

    id: str
    status: Literal["queued", "succeeded", "failed", "cancelled"]
    adapter: Adapter | None = None
    problem: Fault | None = None


class Base(_Answer):
    """A base version of the service's store; `refusal` says why nothing is generated for it, empty where it is."""

    id: str
    model_type: str
    fingerprint: str
    refusal: str


class BaseList(_Answer):
    """All base versions."""

    items: tuple[Base, ...]


class ReleasedAdapter(_Answer):
    """A published adapter: the arm that won, its validation score, where engines find it."""

    task: str
    arm: str
    adapter_id: str
    digest: str
    uri: str
    score: float


class Release(_Answer):
    """What was published for one base version at once; `served_name` is what the adapters call their base."""

    base: str
    served_name: str = ""
    sequence: int
    adapters: tuple[ReleasedAdapter, ...]


class ReleaseList(_Answer):
    """Releases, newest first."""

    items: tuple[Release, ...]
