"""Section `lora`: the LoRA settings of the adapters that are trained and generated, in peft's spelling."""

from pydantic import Field, PositiveFloat, PositiveInt

from oral_ray.config.section import Section


class LoraSettings(Section):
    """Rank, strength and target modules of an adapter."""

    r: PositiveInt = Field(default=4, description="Rank: columns of lora_B and rows of lora_A.")
    lora_alpha: PositiveFloat = Field(default=8.0, description="The change of a weight is B A times lora_alpha / r.")
    target_modules: tuple[str, ...] = Field(
        default=("q", "v"), description="Roles (`q`, `v`, `up`, ...) or module names (`q_proj`) that get an adapter."
    )
    last_layers: PositiveInt | None = Field(
        default=None,
        description="Adapt only so many layers at the end; what lies below is then computed once for many adapters. "
        "None: all layers.",
    )

    def __hash__(self) -> int:  # pydantic's own is there, type checkers do not see it
        return hash(tuple(self.__dict__.values()))
