"""Sections `evaluation` and `study`: what is scored, and the variants of an evidence suite."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from oral_ray.config.section import Distinct, Identifier, Section

Arms = Annotated[tuple[Identifier, ...], Distinct, Field(min_length=1)]
_DEFAULT_ARMS = (
    "base", "majority", "trained", "trained_long", "reuse_old", "reuse_new", "joint", "mean", "nearest", "regression",
    "generated", "wrong_prompt",
)  # fmt: skip


class EvaluationConfig(Section):
    """What is scored: arms x bases x tasks x seeds. Choose settings with `split = "validation"`, report `test`."""

    arms: Arms = Field(
        default=_DEFAULT_ARMS,
        description="The arms of the table, of those in oral_ray/evaluation/arms; an unknown name is refused before "
        "anything is made.",
    )
    arms_on: dict[Identifier, Arms] = Field(
        default={}, description="Other arms for some base versions, by id; every other version has `arms`."
    )
    bases: tuple[Identifier, ...] = Field(
        default=(), description="Ids of the versions to score on; empty: all configured ones."
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=1000)], ...], Distinct] = Field(
        default=(0,), min_length=1, description="Sampling seeds of the generated arms."
    )
    generator_seeds: Annotated[tuple[NonNegativeInt, ...], Distinct] = Field(
        default=(0,),
        min_length=1,
        description="One generator per entry, trained with this added to `training.seed`; in the tables the seed of its "
        "adapters is 1000 times its entry plus the sampling seed.",
    )
    split: Literal["validation", "test"] = Field(default="test", description="Examples that are scored.")
    max_test: PositiveInt = Field(default=1000, description="Test examples per task at most.")
    max_validation: PositiveInt = Field(default=1000, description="Validation examples per task at most.")
    num_bootstrap: PositiveInt = Field(default=2000, description="Draws of the bootstrap behind each interval.")
    regression_steps: PositiveInt = Field(default=400, description="Training steps of the `regression` arm.")
    refine_steps: PositiveInt = Field(
        default=10,
        description="Training steps on the very base of the `refined_*` arms.",
    )
    task_gradients: NonNegativeInt = Field(
        default=0,
        description="Training steps of the static controls (`joint_virtual`, `multitask`) on virtual versions, for all "
        "tasks together. 0: as many task gradients as the functional phase takes (its `steps` times `tasks_per_step`).",
    )
    strengths: tuple[PositiveFloat, ...] = Field(
        default=(1.0, 0.75, 1.25),
        description="Factors by which the `best_*` arms multiply an adapter's change of the weights, to choose the best.",
    )
    num_choice: PositiveInt = Field(
        default=64, description="Validation examples per task that the `best_*` arms choose by."
    )
    step_curve: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 5, 10, 20),
        description="Numbers of sampling steps that are compared in curve.parquet, besides the table.",
    )
    step_curve_tasks: PositiveInt = Field(
        default=2, description="Tasks of the comparison of `step_curve`: the first so many of `tasks.ids`."
    )
    keep_states: bool = Field(
        default=False,
        description="Keep the examples' states below the adapted layers in the cache folder, for tables that are "
        "scored again with other adapters.",
    )


class StudyConfig(Section):
    """Variants of an evidence suite, each a list of overrides; `reference` has none of its own."""

    common: tuple[str, ...] = Field(default=(), description="Overrides of every variant, before its own.")
    variants: dict[Identifier, tuple[str, ...]] = Field(default={}, description="Overrides by name of the variant.")
    only: tuple[Identifier, ...] = Field(default=(), description="Names of the variants to run; empty: all.")
    page: str = Field(
        default="",
        description="Folder that the stage `report` writes tables, figures and page to; empty: `<out>/page`.",
    )
