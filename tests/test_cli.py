"""The command line: what a user gets wrong is one line on standard error with the value, code 2, and no change."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import build_place, contents
from safetensors.torch import load_file

from oral_ray.adapters.artifact import read_folder
from oral_ray.cli import _parser, main
from oral_ray.config import load_config
from oral_ray.errors import LayoutError
from oral_ray.generation.service import open_service

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """See cli_fixtures.build_place; a test must leave it as it was."""
    return build_place(tmp_path_factory.mktemp("cli"), tiny_bert)


def generate(**changed: str) -> list[str]:
    settings = {"config": "run.toml", "store": "store", "prompt": "is it a cat or a dog?", "base": "v1"} | changed
    return ["generate", *(f"--{name}={value}" for name, value in settings.items())]


REFUSED = {
    "unknown key": ([*generate(), "corpus.step=3"], ["unknown configuration key 'corpus.step'", "steps, batch_size"]),
    "no override": ([*generate(), "seed"], ["override 'seed'", "section.key=value"]),
    "no config": (generate(config="none.toml"), ["'none.toml' does not exist", "or a name: cluster, ", "quickstart"]),
    "empty prompt": (generate(prompt=""), ["prompt is empty", "describe the task"]),
    "blank prompt": (generate(prompt=" \n\t"), ["prompt is empty"]),
    "1 MB prompt": (generate(prompt="x" * 2**20), ["1048576 characters, at most 1000", "shorten it"]),
    "unknown base": (generate(base="v9"), ["base 'v9' is not in", "import it"]),
    "base that is a path": (generate(base="../../etc"), ["'bases/../../etc/config.json' is not a plain relative name"]),
    "store a uri would cut": (generate(store="no#where"), ["no#where' holds '#'", "choose one without"]),
    "no store": (generate(store="nowhere"), ["no generator named 'tiny' in", "nowhere", "jobs/train.py"]),
    "store below a file": (generate(store="file/store"), ["no generator named 'tiny' in", "file/store"]),
    "store of another kind": (generate(store="ftp://x"), ["'ftp://x'", "s3://bucket/prefix"]),
    "unknown generator": ([*generate(), "serve.generator=r9"], ["no generator r9", "jobs/train.py"]),
    "no base folder": (["inspect", "none"], ["'none' does not exist", "check the path"]),
    "base without config": (["inspect", "adapter"], ["config.json is missing", "check the path"]),
    "cut weights": (["inspect", "cut"], ["cut/model.safetensors: truncated", "upload it again"]),
    "long header": (["inspect", "long"], [f"header length {2**60}", "long/model.safetensors"]),
    "no package": (["inspect", "pypi:no-such-dist/x"], ["'no-such-dist' is not installed", "pip install"]),
    "hub offline": (["inspect", "hf:no/such"], ["'no/such' could not be fetched"]),
    "unknown target": (["inspect", "llama-8b", "--targets", "q,z"], ["['z'] matches no module", "q_proj"]),
    "rank too large": (["inspect", "llama-8b", "--r", "5000"], ["r=5000", "(4096)"]),
    "rank zero": (["inspect", "llama-8b", "--r", "0"], ["'lora.r'", "0"]),
    "token of nothing": (["inspect", "llama-8b", "--token-dim", "0"], ["'tokens.token_dim'", "0"]),
    "alpha nan": (["inspect", "llama-8b", "--alpha", "nan"], ["'lora.lora_alpha'", "nan"]),
    "no adapter": (["verify", "none", "--base=store/bases/v1"], ["no adapter at none", "check the path"]),
    "cut base": (["verify", "adapter", "--base=cut"], ["cut/model.safetensors: truncated"]),
    "long base": (["verify", "adapter", "--base=long"], [f"header length {2**60}"]),
    "other rank": (["verify", "rank1", "--base=store/bases/v1"], ["lora_A.weight", "generate it again with r=2"]),
    "nan adapter": (["verify", "nan", "--base=store/bases/v1"], ["not finite", "train it again"]),
    "other digest": (["verify", "adapter", "--base=store/bases/v1", "--digest=ab"], ["expected ab", "pull it again"]),
    "base without tokenizer": (["verify", "adapter", "--base=wordless"], ["wordless has no tokenizer", "add its files"]),
    "base of a garbled tokenizer": (["verify", "adapter", "--base=garbled"], ["cannot read the tokenizer", "garbled"]),
    "package without a name": (["inspect", "pypi:"], ["package '' is not installed"]),
    "adapter of another method": (["score", "ia3", "--base=store/bases/v1", "--task=wordnet/mind"], ["no plain LoRA"]),
    "adapter with biases": (["verify", "biased", "--base=store/bases/v1"], ["has bias: 'zz'", "'lora_only'"]),
    "adapter that peft refuses": (["verify", "odd", "--base=store/bases/v1"], ["peft refuses", "odd", "'FOO'"]),
    "unknown task": (["score", "adapter", "--base=store/bases/v1", "--task=no/task"], ["'no/task'", "wordnet/matter"]),
    "no examples": (["score", "adapter", "--base=store/bases/v1", "--task=wordnet/mind", "--limit=0"], ["limit", "0"]),
    "unknown digest": (["pull", "ab" * 32, "out", "--store=store"], ["no adapter 'abab", "oral-ray list"]),
    "digest that is a path": (["pull", "..", "out", "--store=store"], ["plain relative name"]),
    "unknown id": (["pull", "v1/none", "out", "--store=store"], ["no published adapter 'v1/none'", "has none"]),
    "pull without store": (["pull", "ab" * 32, "out", "--store=nowhere"], ["there is no store at", "nowhere", "--store"]),
    "a damaged table": (["report", "tables"], ["tables/scores.parquet is damaged", "run the evaluation again"]),
    "a damaged summary": (["report", "summary"], ["summary/summary.json is damaged"]),
    "no tables": (["report", "nowhere"], ["nowhere", "run the evaluation"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_with_the_value_and_the_remedy_and_changes_nothing(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    argv, parts = REFUSED[case]
    before = contents(place)
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert [part for part in parts if part not in err] == []
    assert len(err) < 1000
    assert contents(place) == before


@pytest.mark.parametrize("argv", [[], ["grow"], ["pull"], ["generate", "--seed", "x"], ["inspect", "x", "--r", "two"]])
def test_a_command_line_that_does_not_parse_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: oral-ray")


def commands() -> list[str]:
    actions = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return sorted(actions[0].choices)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert {"quickstart", "generate", "inspect", "verify", "score", "pull", "list", "report"} <= set(commands())
    assert all(f"\n    {name}" in out for name in commands())


@pytest.mark.parametrize("name", commands())
def test_every_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: oral-ray {name}" in capsys.readouterr().out


def test_generate_stores_an_adapter_that_verify_and_pull_accept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "store", "store")
    shutil.copy(place / "run.toml", ".")
    assert main([*generate(), "--out=made"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == "made"
    assert Path(made["uri"].removeprefix("file://")) == tmp_path / "store/adapters" / made["id"]
    assert read_folder(Path("made")).provenance.prompt == "is it a cat or a dog?"
    assert main(["verify", "made", "--base=store/bases/v1", f"--digest={made['id']}"]) == 0
    assert main(["pull", made["id"], "pulled", "--store=store"]) == 0
    assert contents(Path("pulled")) == contents(Path("made"))
    assert main(["pull", made["id"], "pulled", "--store=store"]) == 0  # the same again
    shutil.copytree(place / "adapter", "adapter")
    before = contents(Path("adapter"))
    assert main(["pull", made["id"], "adapter", "--store=store"]) == 2
    assert "adapter holds adapter" in capsys.readouterr().err and contents(Path("adapter")) == before
    before = contents(Path("store"))
    assert main([*generate(), "--seed=0"]) == 0  # the same seed: the same adapter, nothing new
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["id"] == made["id"]
    assert contents(Path("store")) == before


def test_a_folder_that_cannot_be_written_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "store", "store")
    shutil.copy(place / "run.toml", ".")
    Path("file").write_text("")
    capsys.readouterr()
    assert main([*generate(), "--out=file/made"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write file/made: ")


def test_a_request_is_refused_alone_and_reads_the_probes_that_its_generator_was_trained_on(place: Path):
    store = f"store.uri={place}/store"
    service = open_service(load_config(place / "run.toml", [store, "lora.r=80"]))
    with pytest.raises(LayoutError, match="rank r=80 is larger"):  # before it is in a batch with other requests
        service.catalog.condition("a task", "v1", 0)
    service = open_service(load_config(place / "run.toml", [store, "condition.num_probes=3"]))
    assert service.factory.encoder.config.num_probes != 3
    service.factory.generate([service.catalog.condition("a task", "v1", 0)])
    read = [load_file(path) for path in (place / "store/probes").iterdir()]
    assert {probe.shape for probes in read for probe in probes.values()} == {(8, 8)}


def test_list_says_what_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["list", f"--store={place}/store"]) == 0
    assert capsys.readouterr().out == f"no releases in {place}/store; run jobs/regenerate.py\n"
    assert main(["list", f"--store={place}/store", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {}


def run(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("length", [0, 1_000_000])
def test_a_reader_that_has_seen_enough_is_no_error(length: int):
    code = (
        f"import sys; from oral_ray.cli import guarded; sys.exit(guarded(lambda _: print('x' * {length}), None, False))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_inspect_describes_an_8_billion_model_in_little_memory(place: Path):
    code = (
        "import sys; from oral_ray.cli import main\n"
        "code = main(['inspect', 'llama-8b', '--json'])\n"
        "heavy = sorted({'ray', 'peft', 'deepspeed'} & sys.modules.keys())\n"
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"  # ru_maxrss holds the parent's, too
        "print(code, heavy, peak, file=sys.stderr)"
    )
    done = run("-c", code, cwd=place)
    about = json.loads(done.stdout)
    assert {"num_tokens", "num_parameters", "num_bytes", "slots"} <= about.keys()
    assert (about["num_parameters"], about["num_bytes"]) == (3_407_872, 4 * 3_407_872)
    assert (about["num_tokens"], len(about["slots"])) == (32 * 8 * (3 * 11 + 3), 128)
    code, heavy, kibibytes = done.stderr.split()
    assert (code, heavy) == ("0", "[]")
    assert int(kibibytes) < 800 * 1024  # torch and transformers; the weights would be 16 GB


@pytest.mark.parametrize("case", ["empty prompt", "unknown digest"])
def test_a_process_prints_the_one_line_alone(case: str, place: Path):
    argv, parts = REFUSED[case]
    done = run("-m", "oral_ray.cli", *argv, cwd=place)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(part in done.stderr for part in parts)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["jobs/quickstart.py", "--store={place}/file/store"], ["cannot write 'probe/", "check space and permissions"]),
        (["jobs/train.py", "--store={place}/store", "trainig.steps=1"], ["key 'trainig'", "training"]),
        (["jobs/quickstart.py", "--store={place}/store", 'evaluation.bases=["b"]'], ["['b'], configured are minilm"]),
    ],
)
def test_a_job_refuses_before_it_starts_a_cluster(argv: list[str], parts: list[str], place: Path):
    before = contents(place)
    done = run(*(arg.format(place=place) for arg in argv))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert [part for part in parts if part not in done.stderr] == []
    assert contents(place) == before


@pytest.mark.parametrize("job", ["quickstart", "evaluate"])
def test_an_output_folder_that_cannot_be_made_is_refused_before_anything_is_done(job: str, place: Path):
    before = contents(place)
    done = run(f"jobs/{job}.py", f"--store={place}/store", f"out={place}/file/out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{place}/file/out" in done.stderr
    assert contents(place) == before


def test_a_job_that_fails_in_a_worker_says_why_in_its_last_line_and_leaves_the_store_alone(place: Path):
    versions = f'bases.versions=[{{id="x", origin={{kind="import", source="{place}/cut"}}}}]'
    before = contents(place)
    done = run("jobs/corpus.py", f"--store={place}/store", versions, "cluster.num_cpus=1")
    assert done.returncode == 2, done.stderr
    *log, last = done.stderr.splitlines()
    assert last.startswith("error: ")
    assert "cut/model.safetensors: truncated" in last
    assert "Traceback" not in done.stderr
    assert len(log) <= 4, done.stderr
    assert contents(place) == before


@pytest.mark.parametrize(
    "order", [("smollm2", "seed=7", "--stage", "tasks"), ("smollm2", "--stage", "tasks", "seed=7")]
)
def test_overrides_of_a_study_stand_before_or_after_its_options(order: tuple[str, ...], monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("oral_ray.study.stages.run_stage", lambda config, stage: asked.append(config.seed) or stage)
    assert main(["study", *order]) == 0
    assert asked == [7]


def test_a_command_finds_its_configuration_wherever_the_shell_stands(tmp_path: Path):
    shown = [run("-m", "oral_ray.cli", "config", "show", *words, cwd=tmp_path) for words in ([], ["--config", "multi"])]
    assert [done.returncode for done in shown] == [0, 0], shown[0].stderr
    assert 'name = "quickstart"' in shown[0].stdout and 'name = "multi"' in shown[1].stdout
    assert f'store.uri = "file://{tmp_path}/oral-store"' in shown[0].stdout  # the store is where the shell stands
    done = run(str(ROOT / "jobs/corpus.py"), "--config", "smollm2", 'tasks.ids=["no/task"]', cwd=tmp_path)
    assert done.returncode == 2 and "no/task" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("extra", [("more",), ("--no-such",), ("--no-such=1",)])
def test_what_a_command_does_not_know_is_refused(extra: tuple[str, ...], capsys):
    with pytest.raises(SystemExit):
        main(["study", "smollm2", "--stage", "tasks", *extra])
    assert extra[0] in capsys.readouterr().err


def test_config_show_prints_overridden_values_and_explain_what_a_key_means(capsys: pytest.CaptureFixture[str]):
    assert main(["config", "show", "--config", str(ROOT / "infra/configs/quickstart.toml"), "training.steps=7"]) == 0
    assert "training.steps = 7" in capsys.readouterr().out.splitlines()
    assert main(["config", "explain", "serve.min_replicas"]) == 0
    assert "Generator replicas at least" in capsys.readouterr().out
