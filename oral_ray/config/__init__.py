"""One frozen configuration tree: a complete TOML file plus `section.key=value` overrides.

Functions take their section, never the whole `Config`. Unknown keys are errors, exclusive options are tagged unions
(`kind = ...`), secrets never stand here. `canonical_json` is the one spelling of a value that is hashed: the
fingerprint of a recipe names everything a job writes.

    config = load_config("infra/configs/quickstart.toml", ["seed=1", "training.engine.kind=torch"])
    print(fingerprint(config.training))
"""

from oral_ray.config.identity import canonical_json, derive_seed, fingerprint
from oral_ray.config.material import (
    BasesConfig,
    BaseVersion,
    CacheConfig,
    CorpusConfig,
    EvolveOrigin,
    ImportOrigin,
    LandedOrigin,
    LoraSettings,
    PretrainOrigin,
    S3Config,
    SigningConfig,
    StoreConfig,
    TasksConfig,
    TokensConfig,
)
from oral_ray.config.method import (
    ConditionConfig,
    DeepSpeedEngine,
    DiffusionObjective,
    FunctionalPhase,
    GeneratorConfig,
    LatentConfig,
    RegressionObjective,
    SamplingConfig,
    TorchEngine,
    TrainingConfig,
)
from oral_ray.config.running import (
    ALL_ARMS,
    Arm,
    ClusterConfig,
    EvaluationConfig,
    RegenerateConfig,
    ServeConfig,
    StudyConfig,
)
from oral_ray.config.section import IDENTIFIER, Distinct, Dtype, Fraction, Identifier, Section
from oral_ray.config.tree import Config, build_config, build_section, load_config, with_overrides

__all__ = [
    "ALL_ARMS",
    "IDENTIFIER",
    "Arm",
    "BaseVersion",
    "BasesConfig",
    "CacheConfig",
    "ClusterConfig",
    "ConditionConfig",
    "Config",
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
    "PretrainOrigin",
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
    "build_config",
    "build_section",
    "canonical_json",
    "derive_seed",
    "fingerprint",
    "load_config",
    "with_overrides",
]
