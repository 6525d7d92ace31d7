"""Sections `training` and `sampling`: how the generator is trained, and how adapters are drawn from it."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from oral_ray.config.section import Dtype, Fraction, Section


class TorchEngine(Section):
    """Plain PyTorch, DistributedDataParallel when there is more than one worker."""

    kind: Literal["torch"] = Field(
        default="torch", description="Plain PyTorch, with DistributedDataParallel for several workers."
    )


class DeepSpeedEngine(Section):
    """DeepSpeed ZeRO."""

    kind: Literal["deepspeed"] = Field(default="deepspeed", description="DeepSpeed ZeRO, which shards over workers.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=2,
        description="What is sharded over workers. 0: nothing, 1: optimizer states, 2: gradients too, 3: parameters too.",
    )
    offload_optimizer: bool = Field(default=False, description="Keep optimizer states in host memory.")


class VersionPool(Section):
    """A fixed number of virtual versions, whose states below the first adapted layer are computed once.

    The states are kept in the cache folder; the examples of the pool are the only ones that the phase reads.
    """

    num_versions: PositiveInt = Field(description="Virtual versions in the pool.")
    num_examples: PositiveInt = Field(default=32, description="Examples of every task that each version has.")


class FunctionalPhase(Section):
    """The second phase: task loss of generated adapters on virtual base versions, after `training.steps`.

    Half of the virtual versions are convex mixes of the seen ones, half lie past the newest version of a line.
    """

    steps: NonNegativeInt = Field(
        default=0,
        description="Steps of the phase; 0: no second phase. The static controls (`evaluation.task_gradients`) draw "
        "virtual versions and examples by the other settings of this section in either case.",
    )
    tasks_per_step: PositiveInt = Field(
        default=1, description="Tasks per step and worker, each with an adapter of its own."
    )
    further_frac: Fraction = Field(default=0.5, description="Probability that a task is one of `tasks.further`.")
    num_examples: PositiveInt = Field(default=16, description="Examples of each task per step and worker.")
    batch_size: PositiveInt = Field(
        default=4,
        description="Adapters per worker and step in the diffusion loss, which goes on beside the task loss.",
    )
    steps_per_base: PositiveInt = Field(default=1, description="Steps on one virtual version before the next is drawn.")
    learning_rate: PositiveFloat = Field(
        default=3e-4, description="Highest learning rate of the phase, with a warm-up and a cosine of its own."
    )
    diffusion_weight: float = Field(
        default=0.3, description="What the diffusion loss is multiplied by before it is added to the task loss."
    )
    extrapolation: float = Field(
        default=1.0,
        description="How far past the newest version of a line a virtual one lies at most, as a multiple of the difference "
        "from an older version of the line.",
    )
    pool: VersionPool | None = Field(
        default=None,
        description="Draw virtual versions from a pool that is made once. None: a new version every time.",
    )


class TrainingConfig(Section):
    """How the generator is trained on the shards."""

    seed: int = Field(
        default=0,
        description="Added to the run's seed: another one gives another generator of the same corpus.",
    )
    engine: TorchEngine | DeepSpeedEngine = Field(
        discriminator="kind", default=TorchEngine(), description="What runs a training step."
    )
    num_workers: PositiveInt = Field(
        default=1, description="Workers that train together, each with its share of the corpus and of every batch."
    )
    min_workers: PositiveInt | None = Field(
        default=None,
        description="Go on with so few workers while the cluster has no room for more; None: wait for all.",
    )
    cpus_per_worker: PositiveFloat = Field(default=1.0, description="CPUs that Ray reserves per worker.")
    gpus_per_worker: NonNegativeFloat = Field(default=0.0, description="GPUs that Ray reserves per worker.")
    threads_per_worker: PositiveInt = Field(default=1, description="CPU threads per worker.")
    dtype: Dtype = Field(default="float32", description="Number format of activations; bfloat16 by autocast.")
    steps: PositiveInt = Field(default=1000, description="Steps of the diffusion phase.")
    batch_size: PositiveInt = Field(default=16, description="Adapters per step, over all workers together.")
    accumulation: PositiveInt = Field(
        default=1,
        description="Parts into which a worker cuts its share of a batch, one after another: more take less memory.",
    )
    window_tokens: PositiveInt | None = Field(
        default=None,
        description="Train on at most so many consecutive tokens of an adapter per step; None: on all of them.",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute the activations of layers again in the backward pass instead of keeping them: less memory, "
        "more time, the same result.",
    )
    learning_rate: PositiveFloat = Field(
        default=1e-3, description="Highest learning rate of the diffusion phase; it falls to 0 by a cosine."
    )
    weight_decay: NonNegativeFloat = Field(default=0.0, description="Weight decay of AdamW.")
    warmup_steps: NonNegativeInt = Field(
        default=20, description="Steps over which the learning rate rises from 0, at the start of each phase."
    )
    high_noise_bias: PositiveFloat = Field(
        default=4.0,
        description="Which noise levels t, from 0 to 1, training draws: t = u^(1 / high_noise_bias) with u uniform. 1 is "
        "uniform, more is mostly high noise.",
    )
    ema_decay: Fraction = Field(
        default=0.99,
        description="Decay per step of the moving average of the weights; the average is what is kept and sampled from.",
    )
    grad_clip: PositiveFloat = Field(
        default=1.0, description="Norm of a step's gradient; a larger one is scaled down to it."
    )
    validation_frac: Fraction = Field(
        default=0.05,
        description="Share of the corpus's adapters that are held out from training, to read the validation loss on.",
    )
    validate_every: PositiveInt = Field(default=100, description="Steps between readings of the held-out loss.")
    checkpoint_every: PositiveInt = Field(
        default=200, description="Steps between checkpoints, from which a run that was stopped goes on."
    )
    checkpoint_upload: Literal["async", "sync"] = Field(
        default="async", description="`async`: upload a checkpoint while training goes on; `sync`: wait for each."
    )
    cache_bytes: PositiveInt = Field(
        default=2_000_000_000,
        description="Bytes of rows that a worker keeps in memory; larger shares are streamed anew.",
    )
    functional: FunctionalPhase = Field(default=FunctionalPhase(), description="The second phase of training.")
    max_failures: NonNegativeInt = Field(
        default=3, description="How often a run goes on from its last checkpoint after a worker was lost."
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        for num_workers in range(self.min_workers or self.num_workers, self.num_workers + 1):
            if self.batch_size % (num_workers * self.accumulation):
                raise ValueError(
                    f"batch_size={self.batch_size} is not divisible by num_workers={num_workers} x "
                    f"accumulation={self.accumulation}; change one of them, or min_workers"
                )
        if (self.min_workers or 1) > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is above num_workers={self.num_workers}; lower it")
        if self.window_tokens and isinstance(self.engine, DeepSpeedEngine) and self.engine.zero_stage == 3:
            raise ValueError(
                "window_tokens calls the network a different number of times on every worker, which zero_stage=3 cannot "
                "do; use zero_stage=2 or leave window_tokens out"
            )
        return self


class SamplingConfig(Section):
    """How adapters are sampled."""

    sampler: Literal["ddpm", "ddim", "dpmpp"] = Field(
        default="ddim",
        description="Sampler of the diffusion. `ddpm` draws noise at every step, `ddim` and `dpmpp` (DPM-Solver++) only at "
        "the start; large adapters are sampled in pieces by these two only.",
    )
    num_steps: PositiveInt = Field(
        default=10, description="Denoising steps; each calls the denoiser once per term of the guidance."
    )
    guidance_text: float = Field(default=1.0, description="Guidance scale of the prompt; 1 is no guidance.")
    guidance_model: float = Field(default=1.0, description="Guidance scale of the base; 1 is no guidance.")
    batch_size: PositiveInt = Field(default=64, description="Adapters that are sampled together at most.")
    max_batch_tokens: PositiveInt = Field(default=65536, description="Padded weight tokens of a batch at most.")
