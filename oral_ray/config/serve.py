"""Section `serve`: the generation service."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from oral_ray.config.section import Section

HostName = Annotated[str, Field(pattern=r"^([A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[?[0-9A-Fa-f:]+\]?)$")]


class ServeConfig(Section):
    """Who may ask the service, how much, and how many replicas answer."""

    generator: str = Field(
        default="", description="Recipe of the generator to serve; empty: the current one of the configuration's name."
    )
    tokens: str = Field(
        default="",
        description="Where the bearer tokens stand, `file:PATH` or `env:NAME`; empty: loopback alone is served.",
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        default=(),
        description="Names under which the service is asked, as in a Host header, without a port. Without tokens only "
        "loopback names and these are answered; with tokens every name is, unless some are given.",
    )
    rate_per_minute: NonNegativeInt = Field(default=0, description="Requests per token and minute; 0: no limit.")
    max_body_bytes: PositiveInt = Field(default=65536, description="Bytes of a request's body at most.")
    body_timeout_s: PositiveFloat = Field(
        default=10.0, description="Seconds in which the body of a request must have arrived."
    )
    wait_tokens: PositiveInt = Field(
        default=4096, description="Weight tokens of an adapter that is answered at once; a larger one becomes a job."
    )
    max_wait_s: PositiveFloat = Field(
        default=30.0, description="Seconds that an answer may take before it becomes a job."
    )
    max_jobs: PositiveInt = Field(default=1000, description="Jobs that an ingress replica has under way at most.")
    refresh_s: NonNegativeFloat = Field(
        default=5.0, description="Seconds after which bases and the current generator are looked up again."
    )
    presign_s: NonNegativeInt = Field(
        default=0, description="Redirect downloads on S3 to a link that is valid for so many seconds; 0: no redirects."
    )
    ingress_replicas: PositiveInt = Field(default=1, description="Replicas that speak HTTP (ingress replicas).")
    min_replicas: NonNegativeInt = Field(
        default=1, description="Generator replicas at least; 0: none while nobody asks."
    )
    max_replicas: PositiveInt = Field(default=2, description="Generator replicas at most.")
    target_ongoing_requests: PositiveFloat = Field(
        default=8.0, description="Requests under way per generator replica that scaling aims at."
    )
    upscale_delay_s: NonNegativeFloat = Field(default=5.0, description="Seconds of load before a replica is added.")
    downscale_delay_s: NonNegativeFloat = Field(
        default=60.0, description="Seconds of quiet before a replica is taken away."
    )
    drain_s: NonNegativeFloat = Field(
        default=30.0, description="Seconds that a replica may finish its requests before it ends."
    )
    cpus_per_replica: PositiveFloat = Field(default=1.0, description="CPUs that Ray reserves per generator replica.")
    gpus_per_replica: NonNegativeFloat = Field(default=0.0, description="GPUs that Ray reserves per generator replica.")
    max_queued_requests: int = Field(
        default=64,
        description="Requests that wait for a replica at most; beyond it they are answered 503 with Retry-After.",
    )
    batch_size: PositiveInt = Field(default=8, description="Requests that are sampled together at most.")
    batch_wait_s: NonNegativeFloat = Field(
        default=0.002, description="Seconds that the first request of a batch waits for others."
    )

    @model_validator(mode="after")
    def _check(self) -> "ServeConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; raise that too"
            )
        return self
