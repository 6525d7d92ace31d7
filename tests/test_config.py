"""One configuration tree: faults are named with what would be valid, overrides reach everywhere, hashes are stable."""

import hashlib
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from oral_ray.config import (
    Config,
    ConvDenoiserConfig,
    DeepSpeedEngine,
    EvolveOrigin,
    GeneratorConfig,
    LatentConfig,
    RegressionObjective,
    VersionPool,
    build_config,
    canonical_json,
    derive_seed,
    find_config,
    fingerprint,
    load_config,
    shipped_names,
)  # fmt: skip
from oral_ray.config.explain import described_fields, explained, resolved_toml
from oral_ray.errors import ConfigError

ROOT = Path(__file__).parents[1]

QUICKSTART = Path(__file__).parents[1] / "infra/configs/quickstart.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An empty configuration: everything has its default."""
    path = tmp_path / "run.toml"
    path.write_text("")
    return path


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def test_an_empty_file_is_the_default_tree(file: Path):
    assert load_config(file) == Config()


def test_a_shipped_configuration_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert {"cluster", "multi", "quickstart", "smollm2", "unseen"} <= {*shipped_names()}
    for name in shipped_names():
        assert load_config(name) == load_config(ROOT / f"infra/configs/{name}.toml")
    Path("quickstart").write_text('name = "mine"')
    assert load_config("quickstart").name == "quickstart"
    assert load_config("./quickstart").name == "mine"  # a path
    with pytest.raises(
        ConfigError, match=r"file 'quikstart' does not exist; give a path, or a name: cluster, .*smollm2"
    ):
        load_config("quikstart")


def test_a_wheel_has_every_configuration_of_the_repository_and_no_other():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["oral_ray"]
    packed = {path.resolve() for pattern in patterns for path in (ROOT / "oral_ray").glob(pattern)}
    configs = {*(ROOT / "infra/configs").glob("*.toml")}
    assert len(configs) >= 6 and {path for path in packed if path.suffix == ".toml"} == configs
    assert {find_config(path.stem).resolve() for path in configs} == configs


def test_an_unknown_key_of_a_file_is_an_error_that_names_the_valid_ones(file: Path):
    file.write_text("[corpus]\nstep = 3")
    message = refusal(file)
    assert "'corpus.step'" in message
    assert "steps, batch_size, learning_rate" in message
    assert "store," not in message  # the valid keys of that section, not of the tree


@pytest.mark.parametrize(
    ("override", "key", "valid"),
    [
        ("corpus.step=3", "'corpus.step'", "steps"),
        ("corpora.steps=3", "'corpora'", "corpus"),
        ("sed=1", "'sed'", "seed"),
        ("training.engine.zero_stage=1", "'training.engine.zero_stage'", "kind"),
        ("generator.objective.steps=1", "'generator.objective.steps'", "schedule"),
        ('bases.versions=[{id="a", origin={kind="landed"}, sen=true}]', "'bases.versions.0.sen'", "seen"),
        ('bases.versions=[{id="a", origin={kind="import", src="x"}}]', "'bases.versions.0.origin.src'", "source"),
    ],
)
def test_an_unknown_key_of_an_override_is_an_error_that_names_the_valid_ones(
    file: Path, override: str, key: str, valid: str
):
    message = refusal(file, override)
    assert f"unknown configuration key {key}" in message
    assert valid in message.partition("valid here: ")[2].partition(";")[0].split(", ")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("corpus.steps=many", "'corpus.steps'", "'many'"),
        ("corpus.steps=0", "'corpus.steps'", "0"),
        ("corpus.learning_rate=nan", "'corpus.learning_rate'", "nan"),
        ("tokens.gauge=perhaps", "'tokens.gauge'", "'perhaps'"),
        ("evaluation.arms=['base', 'my luck']", "'evaluation.arms.1'", "'my luck'"),
        ("training.engine.kind=jax", "'training.engine'", "deepspeed"),
        ("name='../x'", "'name'", "'../x'"),
        ("condition.drop_text_frac=1.5", "'condition.drop_text_frac'", "1.5"),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_key_and_value(
    file: Path, override: str, key: str, value: str
):
    message = refusal(file, override)
    assert key in message
    assert value in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ('bases.versions=[{id="a", origin={kind="landed"}}, {id="a", origin={kind="landed"}}]', "'a' stands twice"),
        ('tasks.ids=["x/y", "x/y"]', "'tasks.ids': 'x/y' stands twice"),
        ('evaluation.arms_on.t1=["base", "base"]', "'evaluation.arms_on.t1': 'base' stands twice"),
        ("evaluation.arms_on.t1=[]", "'evaluation.arms_on.t1': Value should have at least 1 item"),
        ("corpus.seeds=[1, 1]", "'corpus.seeds': 1 stands twice"),
        ("corpus.seeds=[]", "'corpus.seeds'"),
        ('corpus.start="../x"', "'corpus.start'"),
        ("evaluation.seeds=[]", "'evaluation.seeds'"),
        ("evaluation.seeds=[1000]", "'evaluation.seeds.0'"),
        ("evaluation.arms=[]", "'evaluation.arms'"),
        ("evaluation.step_curve=[1, 0]", "'evaluation.step_curve.1'"),
        ("training.num_workers=3", "'training': batch_size=16 is not divisible by num_workers=3"),
        ("training.functional.steps=-1", "'training.functional.steps'"),
        ("training.warmup_steps=-1", "'training.warmup_steps'"),
        ("training.max_failures=-2", "'training.max_failures'"),
        ("corpus.retries=-1", "'corpus.retries'"),
    ],
)
def test_a_configuration_that_could_only_fail_later_is_refused_at_once(file: Path, override: str, reason: str):
    message = refusal(file, override)
    assert reason in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("store.cache.max_bytes=5", "'store.cache': max_bytes=5 bounds a cache, and folder names none"),
        ("corpus.seeds_per_generator=2", "'corpus': seeds_per_generator=2 and there are 1 seeds"),
        ("regenerate.refine_steps=3", "'regenerate': refine_steps=3 is about the candidate 'refined'"),
        ('regenerate.candidates=["joint"]', ""),
        ("serve.min_replicas=9", "'serve': min_replicas=9 is above max_replicas=2"),
        ("tokens.last_checkpoints=11", "configuration: tokens.last_checkpoints=11 is above corpus.keep_last=10"),
    ],
)
def test_an_option_that_could_not_count_is_refused_with_what_it_needs(file: Path, override: str, reason: str):
    if not reason:  # nothing was said about samples, so nothing is lost
        load_config(file, [override])
        reason = "'regenerate': num_candidates=2 is about the candidate 'generated'"
        assert reason in refusal(file, override, "regenerate.num_candidates=2")
    else:
        assert reason in refusal(file, override)


def test_an_option_counts_with_what_it_needs(file: Path):
    load_config(file, ["store.cache.max_bytes=5", "store.cache.folder=/tmp/x"])
    load_config(file, ["corpus.seeds_per_generator=2", "corpus.seeds=[0, 1]"])
    load_config(file, ["regenerate.refine_steps=3", 'regenerate.candidates=["generated", "refined"]'])
    load_config(file, ["tokens.last_checkpoints=11", "corpus.keep_last=11"])


def test_a_latent_generator_is_not_trained_on_windows(file: Path):
    load_config(file, ["training.window_tokens=8"])
    message = refusal(file, "training.window_tokens=8", "generator.kind=latent")
    assert message.startswith("configuration: training.window_tokens cuts adapters")


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("generator.denoiser_width=9", "generator.denoiser.width"),
        ("generator.denoiser_blocks=9", "generator.denoiser.num_blocks"),
        ("generator.conv_channels=[9]", "generator.denoiser.channels"),
        ("generator.latent.patch=9", "generator.kind=latent"),
        ("generator.latent={patch=9}", "generator.kind=latent"),
        ("training.functional.num_versions=9", "training.functional.pool.num_versions"),
        ("training.functional.version_examples=9", "training.functional.pool.num_examples"),
    ],
)
def test_a_key_of_before_is_refused_with_the_one_that_says_the_same(file: Path, override: str, where: str):
    key = override.partition("=")[0].removesuffix(".patch")
    message = refusal(file, override)
    assert f"configuration key '{key}' has moved" in message
    assert where in message


def test_a_choice_that_is_given_as_a_word_is_refused_with_the_key_of_its_kind(file: Path):
    message = refusal(file, "generator.denoiser=conv")
    assert (
        message == "configuration key 'generator.denoiser' is a choice; set generator.denoiser.kind to one of mlp, conv"
    )


def test_another_generator_has_nothing_of_the_one_before(file: Path):
    file.write_text("[generator]\nwidth = 9\ndenoiser = { width = 9 }")
    assert load_config(file, ["generator.kind=latent", "generator.patch=9"]).generator == LatentConfig(patch=9)
    found = load_config(file, ["generator.denoiser.kind=conv"]).generator
    assert found == GeneratorConfig(width=9, denoiser=ConvDenoiserConfig())


def test_an_override_reaches_into_an_option_that_is_off(file: Path):
    assert Config().training.functional.pool is None
    pool = load_config(file, ["training.functional.pool.num_versions=7"]).training.functional.pool
    assert pool == VersionPool(num_versions=7)


def test_every_fault_of_a_file_is_named_at_once(file: Path):
    file.write_text("sed = 1\n[corpus]\nsteps = 'x'")
    message = refusal(file)
    assert "'sed'" in message
    assert "'corpus.steps'" in message


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path):
    assert "nowhere.toml' does not exist" in refusal(tmp_path / "nowhere.toml")


def test_a_folder_in_place_of_a_file_is_an_error_that_names_it(tmp_path: Path):
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"seed = ", b"seed = 1\nseed = 2", b"name = '\xff'"])
def test_what_is_no_toml_is_an_error_that_names_the_file(file: Path, data: bytes):
    file.write_bytes(data)
    assert f"{file}' is not valid TOML" in refusal(file)


@pytest.mark.parametrize("override", ["seed", "=1", " =1"])
def test_an_override_without_a_key_or_a_value_is_an_error_that_shows_the_form(file: Path, override: str):
    message = refusal(file, override)
    assert repr(override) in message
    assert "section.key=value" in message


def test_overrides_are_toml_values_or_else_strings_and_the_last_one_wins(file: Path):
    overrides = [
        "seed=3",
        "seed=4",
        "determinism=true",
        "corpus.seeds=[1, 2]",
        "out=some/folder",
        'store.uri="s3://b/p"',
    ]
    config = load_config(file, overrides)
    assert (config.seed, config.determinism, config.corpus.seeds) == (4, True, (1, 2))
    assert (config.out, config.store.uri) == ("some/folder", "s3://b/p")


def test_an_override_reaches_into_a_list_of_sections_by_index(file: Path):
    file.write_text(QUICKSTART.read_text())
    config = load_config(file, ["bases.versions.1.origin.steps=7", "bases.versions.0.seen=false", "tasks.ids.1=x"])
    origin = config.bases.versions[1].origin
    assert isinstance(origin, EvolveOrigin)
    assert (origin.steps, origin.parent) == (7, "minilm-l6-t0")
    assert not config.bases.versions[0].seen
    assert config.tasks.ids[:2] == ("wordnet/matter", "x")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("tasks.ids.4=x", "'4' is no index of a list of 4"),
        ("tasks.ids.-1=x", "'-1' is no index"),
        ("bases.versions.first.seen=true", "'first' is no index"),
        ("seed.more=1", "'seed' is a value, not a section"),
        ("tasks.ids.0.more=1", "is a value, not a section"),
        ("corpus=3", "'corpus'"),
    ],
)
def test_an_override_that_leads_nowhere_is_an_error_that_names_it(file: Path, override: str, reason: str):
    file.write_text(QUICKSTART.read_text())
    assert reason in refusal(file, override)


def test_another_kind_of_an_option_drops_the_settings_of_the_one_before(file: Path):
    file.write_text("[training]\nengine = { kind = 'deepspeed', zero_stage = 3 }")
    assert load_config(file).training.engine == DeepSpeedEngine(zero_stage=3)
    assert load_config(file, ["training.engine.kind=deepspeed"]).training.engine == DeepSpeedEngine(zero_stage=3)
    assert load_config(file, ["training.engine.kind=torch"]).training.engine.kind == "torch"
    overrides = ["generator.objective.kind=regression"]
    assert load_config(file, overrides).generator.objective == RegressionObjective()
    overrides = ["training.engine.kind=torch", "training.engine.kind=deepspeed", "training.engine.zero_stage=1"]
    assert load_config(file, overrides).training.engine == DeepSpeedEngine(zero_stage=1)


def test_settings_that_are_not_given_keep_their_defaults(file: Path):
    file.write_text("[training]\nfunctional = { steps = 9 }\n[generator.objective]\nschedule = 'linear'")
    config = load_config(file, ["training.functional.num_examples=3"])
    default = Config()
    wanted = default.training.functional.model_copy(update={"steps": 9, "num_examples": 3})
    assert config.training == default.training.model_copy(update={"functional": wanted})
    assert config.generator.objective == default.generator.objective.model_copy(update={"schedule": "linear"})


def test_the_quickstart_configuration_loads_and_survives_its_own_json():
    config = load_config(QUICKSTART)
    assert [version.seen for version in config.bases.versions] == [True, True, True, False]
    assert build_config(config.model_dump(mode="json")) == config


def test_the_tree_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().corpus.steps = 3  # type: ignore[misc]


def test_canonical_json_sorts_keys_and_keeps_unicode():
    assert (
        canonical_json({"b": [1, 2.5, None], "a": {"d": True, "c": "é"}}) == '{"a":{"c":"é","d":true},"b":[1,2.5,null]}'
    )


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}, {1, 2}])
def test_what_has_no_canonical_json_is_refused(value: object):
    with pytest.raises(ConfigError, match="no canonical JSON"):
        canonical_json(value)


def test_a_fingerprint_is_the_hash_of_the_canonical_json_of_each_value():
    text = '{"a":[1.5,"é"],"b":1}\n"x"\n'
    assert fingerprint({"b": 1, "a": [1.5, "é"]}, "x") == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_a_fingerprint_sees_every_value_its_place_and_its_section():
    config = Config()
    seen = {
        fingerprint(config),
        fingerprint(config.model_copy(update={"seed": 1})),
        fingerprint(load_config(QUICKSTART)),
        fingerprint("a", "b"),
        fingerprint("b", "a"),
        fingerprint("ab"),
        fingerprint(["a", "b"]),
        fingerprint(1),
        fingerprint("1"),
    }
    assert len(seen) == 9
    assert fingerprint(Config()) == fingerprint(config)


def test_a_derived_seed_is_the_same_for_ever_and_differs_by_seed_and_name():
    assert derive_seed(0, "sample", 3) == int(hashlib.sha256(b"0/sample/3").hexdigest()[:16], 16) % 2**63
    seeds = [derive_seed(seed, *names) for seed in (0, 1) for names in ((), ("a",), ("b",), ("a", "b"), ("a", 1))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_key_has_a_description_that_is_a_sentence():
    for key, _, field in described_fields():
        assert field.description and field.description.endswith("."), f"{key} has no description"


def test_the_resolved_configuration_is_a_file_that_gives_the_same_one(tmp_path: Path):
    for path in sorted((ROOT / "infra" / "configs").glob("*.toml")):
        config = load_config(path)
        (tmp_path / path.name).write_text(resolved_toml(config))
        assert load_config(tmp_path / path.name) == config


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("training.steps", ("Steps of the diffusion phase.", "whole number", "default: 1000")),
        ("training.engine.zero_stage", ("one of 0, 1, 2, 3", "default: 2")),
        ("corpus.seeds_per_generator", ("whole number or none", "default: none")),
        ("bases.versions.id", ("none, it must be given",)),
        ("sampling", ("sampling.num_steps: Denoising steps;",)),
        ("bases.versions.origin.steps", ("(kind evolve)", "default: 60", "(kind pretrain)", "default: 40")),
        ("generator", ("generator.patch (kind latent)", "generator.width (kind tokens)")),
        ("generator.denoiser.kind", ("`conv`: RPG's", "one of mlp, conv", 'default: "mlp"')),
    ],
)
def test_a_key_is_explained_with_its_type_and_default(key: str, words: tuple[str, ...]):
    assert all(word in explained(key) for word in words)


def test_an_unknown_key_is_answered_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"training\.step'; did you mean training\.steps"):
        explained("training.step")
