"""One frozen configuration tree: a complete TOML file plus `section.key=value` overrides.

Functions take their section, never the whole `Config`. Unknown keys are errors, exclusive options are tagged unions
(`kind = ...`), secrets never stand here. `canonical_json` is the one spelling of a value that is hashed: the
fingerprint of a recipe names everything a job writes.

    config = load_config("quickstart", ["seed=1", "training.engine.kind=torch"])
    print(fingerprint(config.training))
"""

from oral_ray.config.bases import BasesConfig, BaseVersion, EvolveOrigin, ImportOrigin, LandedOrigin, PretrainOrigin
from oral_ray.config.cluster import ClusterConfig
from oral_ray.config.corpus import CorpusConfig
from oral_ray.config.evaluation import EvaluationConfig, StudyConfig
from oral_ray.config.generator import (
    ConditionConfig,
    ConvDenoiserConfig,
    DiffusionObjective,
    GeneratorConfig,
    LatentConfig,
    MlpDenoiserConfig,
    RegressionObjective,
)
from oral_ray.config.identity import canonical_json, derive_seed, fingerprint
from oral_ray.config.lora import LoraSettings
from oral_ray.config.nightly import RegenerateConfig
from oral_ray.config.section import IDENTIFIER, Distinct, Dtype, Fraction, Identifier, Section
from oral_ray.config.serve import ServeConfig
from oral_ray.config.shipped import DEFAULT_CONFIG, find_config, shipped_names
from oral_ray.config.store import CacheConfig, S3Config, SigningConfig, StoreConfig
from oral_ray.config.tasks import TasksConfig
from oral_ray.config.tokens import TokensConfig
from oral_ray.config.training import (
    DeepSpeedEngine,
    FunctionalPhase,
    SamplingConfig,
    TorchEngine,
    TrainingConfig,
    VersionPool,
)
from oral_ray.config.tree import Config, build_config, build_section, load_config, with_overrides
from oral_ray.local.record import Record

__all__ = [
    "DEFAULT_CONFIG",
    "IDENTIFIER",
    "BaseVersion",
    "BasesConfig",
    "CacheConfig",
    "ClusterConfig",
    "ConditionConfig",
    "Config",
    "ConvDenoiserConfig",
    "CorpusConfig",
    "DeepSpeedEngine",
    "DiffusionObjective",
    "Distinct",
    "Dtype",
    "EvaluationConfig",
    "EvolveOrigin",
    "Fraction",
    "FunctionalPhase",
    "GeneratorConfig",
    "Identifier",
    "ImportOrigin",
    "LandedOrigin",
    "LatentConfig",
    "LoraSettings",
    "MlpDenoiserConfig",
    "PretrainOrigin",
    "Record",
    "RegenerateConfig",
    "RegressionObjective",
    "S3Config",
    "SamplingConfig",
    "Section",
    "ServeConfig",
    "SigningConfig",
    "StoreConfig",
    "StudyConfig",
    "TasksConfig",
    "TokensConfig",
    "TorchEngine",
    "TrainingConfig",
    "VersionPool",
    "build_config",
    "build_section",
    "canonical_json",
    "derive_seed",
    "find_config",
    "fingerprint",
    "load_config",
    "shipped_names",
    "with_overrides",
]
