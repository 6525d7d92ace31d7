"""Section `regenerate`: the nightly job."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from oral_ray.config.section import Distinct, Identifier, Section

ServedName = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,498}[^\s\x00-\x1f\x7f])?$")]


class RegenerateConfig(Section):
    """Which landed bases get adapters, what competes for publication, and when a candidate is good enough."""

    bases: tuple[str, ...] = Field(
        default=("*",),
        description="Patterns of base ids (`*` and `?` as in file names); `*` is everything that has landed.",
    )
    num_candidates: PositiveInt = Field(
        default=1,
        description="Samples of the generator per base and task that compete as `generated`, each with a seed of its own.",
    )
    candidates: Annotated[tuple[Literal["generated", "joint", "reuse_new", "reuse_old", "refined"], ...], Distinct] = (
        Field(
            default=("generated", "joint", "reuse_new", "reuse_old"),
            description="What competes; the earlier one wins a tie. `joint` needs a corpus with such adapters; "
            "`refined` is the best of the others after `refine_steps` on that base.",
        )
    )
    refine_steps: PositiveInt = Field(default=10, description="Training steps of the candidate `refined`.")
    min_gain_over_base: float = Field(
        default=0.0,
        description="Publish nothing unless the best candidate's score is better than the bare base's by more than this.",
    )
    quiet_period_s: float = Field(
        default=0.0, description="Seconds that a landed checkpoint must have been unchanged; a file READY waives it."
    )
    publish_prefix: str = Field(default="published", description="Key prefix of published adapters in the store.")
    served_names: dict[Identifier, ServedName] = Field(
        default={},
        description="Names under which bases are served, by base id: what is published for a base names it so, and "
        "engines compare it (vLLM's --served-model-name, or the path that it is started with). A base that is not "
        "named here is served under its id.",
    )
    retries: NonNegativeInt = Field(
        default=2, description="How often a base and task are tried again whose worker or store failed."
    )
    poll_s: PositiveFloat = Field(default=300.0, description="Seconds between two looks at the store with --watch.")
    events: str = Field(
        default="", description="Address of an SQS queue of S3 events that --watch follows; empty: none."
    )

    @model_validator(mode="after")
    def _check(self) -> "RegenerateConfig":
        for name, candidate in (("num_candidates", "generated"), ("refine_steps", "refined")):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and candidate not in self.candidates:
                raise ValueError(
                    f"{name}={value} is about the candidate {candidate!r}, which is not among candidates; add it there, "
                    f"or leave {name} out"
                )
        return self

    def served_name(self, base_id: str) -> str:
        """The name under which a base is served."""
        return self.served_names.get(base_id, base_id)
