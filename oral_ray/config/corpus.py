"""Section `corpus`: the LoRA adapters that a generator learns from."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from oral_ray.config.lora import LoraSettings
from oral_ray.config.section import Distinct, Section


class CorpusConfig(Section):
    """How the adapters of the corpus are trained, and which of them a generator learns."""

    targets: Literal["single", "joint"] = Field(
        default="single",
        description="What the generator learns to reproduce: adapters trained on each seen version by itself "
        "(`single`), or one adapter per task trained on all seen versions of an architecture together (`joint`).",
    )
    kinds: tuple[LoraSettings, ...] = Field(
        default=(), description="LoRA settings that one generator learns side by side; empty: `lora` alone."
    )
    seeds: Annotated[tuple[int, ...], Distinct] = Field(
        default=(0,), min_length=1, description="Each adapter is trained once per seed."
    )
    seeds_per_generator: PositiveInt | None = Field(
        default=None,
        description="How many of the seeds one generator learns from; `training.seed` chooses which. None: all.",
    )
    num_examples: PositiveInt | None = Field(
        default=None,
        description="Every training, that of the generator too, reads the first so many examples of a task; what the "
        "frozen base does to them below the first adapted layer is computed once and kept in the cache folder. "
        "None: all examples.",
    )
    steps: PositiveInt = Field(default=80, description="Training steps per adapter (`joint`: per version).")
    batch_size: PositiveInt = Field(default=16, description="Examples of the task per training step.")
    learning_rate: PositiveFloat = Field(default=2e-3, description="Learning rate of AdamW, the same at every step.")
    keep_last: PositiveInt = Field(
        default=10, description="Adapters that are kept of each training: those after its last so many steps."
    )
    init_seed: int = Field(default=0, description="Seed of the factors that all trainings of a layout start from.")
    start: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="Digest of the adapter in the store that every training starts from, such as one for all tasks "
        "(`jobs/multitask.py`); it fits one architecture and one set of LoRA settings. Empty: a fresh adapter.",
    )
    retries: NonNegativeInt = Field(default=2, description="How often a training is tried again whose worker failed.")

    @model_validator(mode="after")
    def _check(self) -> "CorpusConfig":
        if (self.seeds_per_generator or 0) > len(self.seeds):
            raise ValueError(
                f"seeds_per_generator={self.seeds_per_generator} and there are {len(self.seeds)} seeds; lower it, or add "
                "to seeds"
            )
        return self
