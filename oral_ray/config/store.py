"""Section `store`: where everything is kept, how S3 is spoken to, the local cache, the keys of signatures."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from oral_ray.config.section import Section


class S3Config(Section):
    """How S3 is spoken to. `concurrency` times `part_bytes` bounds the memory that transfers take."""

    concurrency: PositiveInt = Field(default=8, description="Requests that one store has under way at most.")
    part_bytes: Annotated[int, Field(ge=5 * 2**20)] = Field(
        default=8 * 2**20, description="Bytes per part of a large upload or download; S3 takes no less than 5 MiB."
    )
    attempts: PositiveInt = Field(
        default=8,
        description="How often a request is tried that is throttled (503), fails (5xx) or loses its connection; the "
        "pauses between the attempts are random and grow.",
    )
    connect_timeout_s: PositiveFloat = Field(
        default=10.0, description="Seconds in which a connection must be made before the request is tried again."
    )
    read_timeout_s: PositiveFloat = Field(
        default=60.0, description="Seconds that an answer may pause before the request is tried again."
    )


class CacheConfig(Section):
    """A local copy of adapters and generators that were read from S3."""

    folder: str = Field(default="", description="Absolute path of the cache folder; empty: nothing is cached.")
    max_bytes: PositiveInt = Field(
        default=10_000_000_000, description="Bytes the cache may take; what was used longest ago is deleted first."
    )

    @model_validator(mode="after")
    def _check(self) -> "CacheConfig":
        if not self.folder and self.max_bytes != type(self).model_fields["max_bytes"].default:
            raise ValueError(f"max_bytes={self.max_bytes} bounds a cache, and folder names none; set it too")
        return self


class SigningConfig(Section):
    """Keys that the nightly job signs and checks with. They must be there wherever the job's tasks run."""

    private_key: Path | None = Field(
        default=None,
        description="Path of a private key (PEM); what is published is signed with it. None: no signatures.",
    )
    public_key: Path | None = Field(
        default=None,
        description="Path of a public key (PEM); only what it verifies is released. None: nothing is checked.",
    )


class StoreConfig(Section):
    """The object store that holds bases, adapters, generators, releases."""

    uri: str = Field(default="./oral-store", description="A folder path, `file:///...` or `s3://bucket/prefix`.")
    s3: S3Config = Field(default=S3Config(), description="How S3 is spoken to; of no effect on a folder.")
    cache: CacheConfig = Field(default=CacheConfig(), description="A local copy of what was read from S3.")
    signing: SigningConfig = Field(
        default=SigningConfig(), description="Keys to sign and verify published adapters with."
    )
