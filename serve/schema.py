"""The wire contract of the service: what a client sends and gets. Changes here are changes for every client."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from oral_ray.config import Identifier


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateRequest(_Message):
    """One adapter to generate: the task in words, a base version of the store, the seed of the sample."""

    prompt: Annotated[str, Field(description="The task in words, at most 1000 characters.")]
    base: Annotated[Identifier, Field(description="Id of a base version in the store.")]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Same prompt, base, generator and seed: same adapter.")] = 0


class AdapterInfo(_Message):
    """A stored adapter: its id (the digest of its content), where it lies, and where it came from."""

    id: str
    uri: str
    base: str
    base_fingerprint: str
    prompt: str
    seed: int
    generator: str
    r: int
    lora_alpha: float
    target_modules: list[str]


class Health(_Message):
    """A replica that answers has loaded this generator."""

    status: str
    generator: str


class Problem(_Message):
    """An error (RFC 9457, application/problem+json); `detail` names the value and the remedy."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
