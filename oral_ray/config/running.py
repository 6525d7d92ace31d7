"""Sections on what is done with a generator, and where: evaluation, nightly job, service, studies, cluster."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from oral_ray.config.section import Distinct, Identifier, Section

Arm = Literal[
    "base", "prompted", "few_shot", "majority", "trained", "trained_long", "reuse_old", "reuse_new", "joint",
    "joint_virtual", "mean", "nearest", "multitask", "multitask_instructed", "regression", "generated", "held_out",
    "wrong_prompt", "refined_scratch", "refined_reuse_new", "refined_joint", "refined_generated", "best_trained",
    "best_reuse_new", "best_joint", "best_joint_virtual", "best_generated",
]  # fmt: skip
Arms = Annotated[tuple[Arm, ...], Distinct, Field(min_length=1)]
ALL_ARMS: tuple[Arm, ...] = Arm.__args__  # type: ignore[attr-defined]
_DEFAULT_ARMS: tuple[Arm, ...] = (
    "base", "majority", "trained", "trained_long", "reuse_old", "reuse_new", "joint", "mean", "nearest", "regression",
    "generated", "wrong_prompt",
)  # fmt: skip


ServedName = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,498}[^\s\x00-\x1f\x7f])?$")]


class EvaluationConfig(Section):
    """What is scored: arms x bases x tasks x seeds. Empty `bases` means every configured version.

    `trained_long` is `trained` with as many steps as `joint` has, all on the very base. `held_out` is `generated` from a
    wording that was never trained on. `prompted` and `few_shot` are the base with the instruction (and four examples) in
    the text. `joint_virtual` and `multitask` are static adapters with `task_gradients` on virtual versions (0: as many as
    the functional phase has), `refined_*` have `refine_steps` steps on the very base (oral_ray/stages/static.py).
    `best_*` is the best of an arm's adapters, each at every one of `strengths`, on `num_choice` validation examples.
    A version of `arms_on` has the arms that it names there, every other one has `arms`.

    With several `generator_seeds` (added to `training.seed`: several generators) the seed of a generated adapter is 1000
    times the generator's plus its own.

    Settings are chosen with `split = "validation"`; what is reported is `test`. With `keep_states` the examples' states
    below the adapted layers stay in the cache folder, for tables that are scored again with other adapters (ablations).
    """

    arms: Arms = _DEFAULT_ARMS
    arms_on: dict[Identifier, Arms] = Field(default={})
    bases: tuple[Identifier, ...] = ()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=1000)], ...], Distinct] = Field(default=(0,), min_length=1)
    generator_seeds: Annotated[tuple[NonNegativeInt, ...], Distinct] = Field(default=(0,), min_length=1)
    split: Literal["validation", "test"] = "test"
    max_test: PositiveInt = 1000
    max_validation: PositiveInt = 1000
    num_bootstrap: PositiveInt = 2000
    regression_steps: PositiveInt = 400
    refine_steps: PositiveInt = 10
    task_gradients: NonNegativeInt = 0
    strengths: tuple[PositiveFloat, ...] = (1.0, 0.75, 1.25)
    num_choice: PositiveInt = 64
    step_curve: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20)
    step_curve_tasks: PositiveInt = 2
    keep_states: bool = False


class RegenerateConfig(Section):
    """The nightly job: which landed bases, which candidates, when a candidate is good enough.

    `num_candidates` samples are generated; `joint` is a candidate where the corpus has such adapters; `refined` is the best
    of the others after `refine_steps` steps on that base. A pair of base and task is tried `retries` times more where its
    worker or the store fails. `--watch` lists every `poll_s`, and sooner what the SQS queue `events` names.

    What is published for a base names it as it is served, which engines compare: by `served_names`, the name by base id
    (vLLM's `--served-model-name`, or the path that it is started with), else by the base's id.
    """

    bases: tuple[str, ...] = ("*",)
    num_candidates: PositiveInt = 1
    candidates: Annotated[tuple[Literal["generated", "joint", "reuse_new", "reuse_old", "refined"], ...], Distinct] = (
        "generated", "joint", "reuse_new", "reuse_old",
    )  # fmt: skip
    refine_steps: PositiveInt = 10
    min_gain_over_base: float = 0.0
    quiet_period_s: float = 0.0
    publish_prefix: str = "published"
    served_names: dict[Identifier, ServedName] = Field(default={})
    retries: NonNegativeInt = 2
    poll_s: PositiveFloat = 300.0
    events: str = ""

    def served_name(self, base_id: str) -> str:
        """The name under which a base is served."""
        return self.served_names.get(base_id, base_id)


class ServeConfig(Section):
    """The generation service; `generator` is a recipe, empty for the current one of the configuration's name.

    `tokens` names the bearer tokens, `file:PATH` or `env:NAME` (serve/security.py has the format); without them only
    loopback is served. `rate_per_minute` requests a token may come, 0 is no limit. What the store may change (bases,
    the current generator) is looked up every `refresh_s`. Requests of at most `wait_tokens` weight tokens are answered at
    once, waiting at most `max_wait_s`; larger and slower ones become jobs. With `presign_s` files on S3 are answered by a
    redirect to a link that is valid so long.
    """

    generator: str = ""
    tokens: str = ""
    rate_per_minute: NonNegativeInt = 0
    max_body_bytes: PositiveInt = 65536
    body_timeout_s: PositiveFloat = 10.0
    wait_tokens: PositiveInt = 4096
    max_wait_s: PositiveFloat = 30.0
    max_jobs: PositiveInt = 1000
    refresh_s: NonNegativeFloat = 5.0
    presign_s: NonNegativeInt = 0
    ingress_replicas: PositiveInt = 1
    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt = 2
    target_ongoing_requests: PositiveFloat = 8.0
    upscale_delay_s: NonNegativeFloat = 5.0
    downscale_delay_s: NonNegativeFloat = 60.0
    drain_s: NonNegativeFloat = 30.0
    cpus_per_replica: PositiveFloat = 1.0
    gpus_per_replica: NonNegativeFloat = 0.0
    max_queued_requests: int = 64
    batch_size: PositiveInt = 8
    batch_wait_s: NonNegativeFloat = 0.002


class StudyConfig(Section):
    """Variants of an evidence suite, each a list of overrides by name, after those of `common`; `reference` has no others.

    `only` names the ones to run now.
    """

    common: tuple[str, ...] = ()
    variants: dict[Identifier, tuple[str, ...]] = Field(default={})
    only: tuple[Identifier, ...] = ()


class ClusterConfig(Section):
    """The Ray cluster: `address = "local"` starts one in this process; `RAY_ADDRESS` in the environment, which a
    submitted job has, goes before it.

    `num_cpus` is the size of a private cluster, and how many CPUs of another one tasks may take: unset, as many as it has
    when a stage begins, which for an autoscaling cluster that nothing has asked yet is none, so say it there.
    `address = "none"` runs tasks one after another in this process, without Ray (not the shards, not the training).
    With `gpus_per_task` (a fraction: 0.0625 lets 16 tasks share a GPU) tasks compute on CUDA: versions, trainings, scores,
    generated adapters. The training of the generator and the service have their own settings.

    After `stop_after_s` seconds no further task is started; the command ends with code 75 and goes on when run again.
    """

    address: str = "local"
    num_cpus: PositiveInt | None = None
    cpus_per_task: PositiveFloat = 1.0
    gpus_per_task: NonNegativeFloat = 0.0
    threads_per_task: PositiveInt = 1
    object_store_bytes: PositiveInt = 400_000_000
    stop_after_s: PositiveFloat | None = None
