"""The whole tree, and how it is read: a TOML file, overrides, one error that names every fault."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, model_validator

from oral_ray.config.bases import BasesConfig
from oral_ray.config.cluster import ClusterConfig
from oral_ray.config.corpus import CorpusConfig
from oral_ray.config.evaluation import EvaluationConfig, StudyConfig
from oral_ray.config.generator import ConditionConfig, GeneratorConfig, LatentConfig
from oral_ray.config.lora import LoraSettings
from oral_ray.config.nightly import RegenerateConfig
from oral_ray.config.section import Identifier, S, Section
from oral_ray.config.serve import ServeConfig
from oral_ray.config.shipped import find_config, shipped_names
from oral_ray.config.store import StoreConfig
from oral_ray.config.tasks import TasksConfig
from oral_ray.config.tokens import TokensConfig
from oral_ray.config.training import SamplingConfig, TrainingConfig
from oral_ray.errors import ConfigError

_MOVED = {
    "generator.conv_channels": "it is generator.denoiser.channels, with generator.denoiser.kind=conv before it",
    "generator.denoiser_blocks": "it is generator.denoiser.num_blocks",
    "generator.denoiser_width": "it is generator.denoiser.width",
    "generator.latent": "set generator.kind=latent, and its sizes beside that, as in generator.patch",
    "training.functional.num_versions": "it is training.functional.pool.num_versions",
    "training.functional.version_examples": "it is training.functional.pool.num_examples",
}
"""Keys that files of version 0.1 have -> where what they say stands."""


class Config(Section):
    """The whole tree; one run is one complete file."""

    name: Identifier = Field(default="run", description="Name of the run: its generator and its releases carry it.")
    seed: int = Field(default=0, description="Seed that every random number is derived from.")
    determinism: bool = Field(
        default=False,
        description="Fixed thread counts, order and kernels, adapters sampled one by one: the same seed gives the same "
        "digests on the same kind of device.",
    )
    out: str = Field(default="out/run", description="Folder on this machine for tables, report and summary.")
    store: StoreConfig = Field(default=StoreConfig(), description="Where everything is kept.")
    bases: BasesConfig = Field(default=BasesConfig(), description="The base model versions.")
    tasks: TasksConfig = Field(default=TasksConfig(), description="What adapters are for.")
    lora: LoraSettings = Field(
        default=LoraSettings(), description="LoRA settings of what is trained, generated, scored."
    )
    corpus: CorpusConfig = Field(default=CorpusConfig(), description="The adapters that the generator learns from.")
    tokens: TokensConfig = Field(default=TokensConfig(), description="How an adapter becomes weight tokens.")
    condition: ConditionConfig = Field(default=ConditionConfig(), description="What the generator is told.")
    generator: GeneratorConfig | LatentConfig = Field(
        discriminator="kind", default=GeneratorConfig(), description="Which generator, and its sizes."
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="How the generator is trained.")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How adapters are sampled.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="What is scored.")
    regenerate: RegenerateConfig = Field(default=RegenerateConfig(), description="The nightly job.")
    serve: ServeConfig = Field(default=ServeConfig(), description="The generation service.")
    study: StudyConfig = Field(default=StudyConfig(), description="Variants of an evidence suite.")
    cluster: ClusterConfig = Field(default=ClusterConfig(), description="The Ray cluster.")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        """What one section says must count beside the others."""
        if self.training.window_tokens and isinstance(self.generator, LatentConfig):
            raise ValueError(
                "training.window_tokens cuts adapters, and a generator of kind latent knows whole ones only; leave "
                "window_tokens out, or set generator.kind=tokens"
            )
        if (self.tokens.last_checkpoints or 0) > self.corpus.keep_last:
            raise ValueError(
                f"tokens.last_checkpoints={self.tokens.last_checkpoints} is above corpus.keep_last="
                f"{self.corpus.keep_last}, the number of checkpoints that a training keeps; lower it, or raise keep_last"
            )
        return self


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides in order, and validate the result.

    `path` is the path of a file, or the bare name of one that comes with the package (`quickstart`).

    Values of overrides are TOML (`1`, `true`, `[1, 2]`, `"text"`); what is no TOML value is taken as a string.
    Raises ConfigError for a missing file, a syntax error, an unknown key or a value of the wrong type.
    """
    try:
        tree = tomllib.loads(find_config(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"configuration file {str(path)!r} does not exist; give a path, or a name: {', '.join(shipped_names())}"
        ) from None
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
        said = item["msg"].removeprefix("Value error, ")
        return f"configuration key {where!r}: {said}" if where else f"configuration: {said}"
    if item["type"] == "extra_forbidden" and where in _MOVED:
        return f"configuration key {where!r} has moved: {_MOVED[where]}"
    kinds = _kinds(node)
    if kinds and not isinstance(item.get("input"), dict):
        return f"configuration key {where!r} is a choice; set {where}.kind to one of {', '.join(kinds)}"
    if item["type"] == "extra_forbidden":
        return f"unknown configuration key {where!r}; valid here: {', '.join(parent.model_fields)}"
    return f"configuration key {where!r}: {item['msg']} (got {item.get('input')!r})"


def _kinds(annotation: Any) -> list[str]:
    """The kinds of a tagged union; none for everything else."""
    fields = [getattr(option, "model_fields", {}).get("kind") for option in get_args(annotation)]
    return [field.default for field in fields if field is not None]


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
    if node.get(part) is None:  # not there, or an option that is off
        node[part] = {}
    child = node[part]
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
    return child


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"override {override!r}: {part!r} is no index of a list of {len(node)}")
    return int(part)
