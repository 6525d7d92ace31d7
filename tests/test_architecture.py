"""The house keeps its rules, and each rule is seen to catch a violation planted in a small fake tree."""

import subprocess
import sys
from pathlib import Path

import pytest
from architecture import (
    FLOORS,
    KINDS,
    RULES,
    SOLE_IMPORTERS,
    WIDE_FUNCTIONS,
    edges,
    parameter_counts,
    read_sources,
    violations,
)  # fmt: skip

from oral_ray.modalities import MODALITIES

ROOT = Path(__file__).parents[1]
TORCH_FREE = (
    "oral_ray.config", "oral_ray.objects", "oral_ray.nightly.plan", "oral_ray.cli", "oral_ray.tasks", "oral_ray.bases.spec",
    "oral_ray.bases.skeleton", "oral_ray.bases.expected", "oral_ray.bases.headers",
    "oral_ray.bases.sources", "oral_ray.adapters.layout",
)  # fmt: skip
STARTS_RAY = ("cluster", "pipeline", "evaluation", "nightly", "study", "bench", "jobs")
"""Rooms that hand work to the cluster; what workers and servers share is in none of them."""


def test_the_house_breaks_none_of_its_rules():
    assert violations(ROOT) == []


def test_the_rules_see_the_rooms_and_imports_that_there_are():
    sources = read_sources(ROOT)
    assert {source.room for source in sources.values()} - {""} == {room for floor in FLOORS for room in floor}
    graph = edges(sources)
    assert {"oral_ray.objects", "oral_ray.errors"} <= graph["oral_ray.store.records"]
    assert "oral_ray.pipeline.corpus" in graph["jobs.corpus"]
    assert "oral_ray.generation.service" in graph["oral_ray.cli"]  # an import inside a function counts


PLANTED = [
    ("floors", "oral_ray/bases/z.py", "from oral_ray.store import records", "oral_ray/bases/z.py: bases imports"),
    ("floors", "oral_ray/bases/z.py", "from ..store.records import Records", "oral_ray/bases/z.py: bases imports"),
    ("floors", "oral_ray/store/z.py", "def f():\n    import oral_ray.cli", "oral_ray/store/z.py: store imports"),
    ("floors", "oral_ray/config/z.py", "import oral_ray.objects", "oral_ray/config/z.py: config imports"),
    ("floors", "oral_ray/cli/z.py", "import jobs.corpus", "oral_ray/cli/z.py: cli imports jobs.corpus"),
    ("floors", "oral_ray/cli/z.py", "from serve import app", "oral_ray/cli/z.py: cli imports serve.app"),
    ("floors", "jobs/z.py", "from serve import app", "jobs/z.py: jobs imports serve.app"),
    ("floors", "oral_ray/__init__.py", "import oral_ray.objects", "oral_ray/__init__.py: oral_ray imports"),
    ("floors", "oral_ray/shed/z.py", "", "room 'shed' stands on no floor"),
    (
        "floors",
        "oral_ray/bases/z.py",
        "import importlib\nimportlib.import_module('oral_ray.store.records')",
        "store.records",
    ),
    (
        "floors",
        "oral_ray/bases/z.py",
        "import_module('..store.records', __package__)",
        "imports oral_ray.store.records",
    ),
    ("floors", "oral_ray/bases/z.py", "import_module(f'oral_ray.store.{x}')", "imports oral_ray.store.records"),
    ("floors", "oral_ray/bases/z.py", "import_module('oral_ray.store.' + x)", "imports oral_ray.store.records"),
    (
        "floors",
        "oral_ray/bases/z.py",
        "from importlib import import_module as load\nload('oral_ray.cli')",
        "imports oral_ray.cli",
    ),
    ("floors", "oral_ray/bases/z.py", "__import__('oral_ray.cli')", "imports oral_ray.cli"),
    ("floors", "oral_ray/cli/z.py", "import runpy\nrunpy.run_module('jobs.train')", "imports jobs.train"),
    ("floors", "oral_ray/cli/z.py", "runpy.run_module(mod_name='jobs.train')", "imports jobs.train"),
    ("floors", "oral_ray/cli/z.py", "pkgutil.resolve_name('jobs.train:main')", "imports jobs.train"),
    ("circles", "oral_ray/bases/x.py", "from oral_ray.bases import y", "oral_ray.bases.x -> oral_ray.bases.y"),
    ("circles", "oral_ray/bases/x.py", "import_module('oral_ray.bases.y')", "oral_ray.bases.x -> oral_ray.bases.y"),
    ("top", "oral_ray/local.py", "", "oral_ray/local.py: a loose module at the top of the package"),
    ("loads", "oral_ray/cli/z.py", "importlib.import_module(name)", "line 1 loads a module by a computed name"),
    ("loads", "oral_ray/cli/z.py", "import_module(f'{room}.train')", "line 1 loads a module by a computed name"),
    ("loads", "oral_ray/cli/z.py", "import_module(f'oral_ray.{room}')", "line 1 loads a module by a computed name"),
    ("loads", "oral_ray/cli/z.py", "__import__(name)", "line 1 loads a module by a computed name"),
    ("loads", "jobs/z.py", "runpy.run_module(mod_name=name)", "line 1 loads a module by a computed name"),
    ("loads", "jobs/z.py", "SourceFileLoader('x', file)", "line 1 runs a file by its path (SourceFileLoader)"),
    ("loads", "serve/z.py", "load = importlib.import_module", "line 1 hands import_module on"),
    (
        "loads",
        "oral_ray/cli/z.py",
        "getattr(importlib, 'import_module')(x)",
        "line 1 looks import_module up by its name",
    ),
    ("loads", "oral_ray/cli/z.py", "import runpy\nrunpy.run_path(file)", "line 2 runs a file by its path (run_path)"),
    (
        "loads",
        "jobs/z.py",
        "importlib.util.spec_from_file_location('x', file)",
        "runs a file by its path (spec_from_file",
    ),
    ("paths", "oral_ray/cli/z.py", "run('jobs/train.py')", "reaches out of the library for 'jobs/train.py'"),
    ("paths", "oral_ray/cli/z.py", "run(f'../jobs/{name}.py')", "reaches out of the library for '../jobs/....py'"),
    (
        "paths",
        "oral_ray/cli/z.py",
        "run(['python', '-m', 'jobs.train'])",
        "reaches out of the library for 'jobs.train'",
    ),
    ("paths", "oral_ray/cli/z.py", "ROOT / 'jobs' / 'train.py'", "reaches out of the library for 'jobs'"),
    (
        "paths",
        "oral_ray/cli/z.py",
        "class A:\n    folder: str = 'docs/results'",
        "line 2 reaches out of the library for",
    ),
    ("paths", "oral_ray/cli/z.py", "Path('docs') / name", "reaches out of the library for 'docs'"),
    ("paths", "oral_ray/cli/z.py", "os.path.join(root, 'docs', name)", "reaches out of the library for 'docs'"),
    ("paths", "oral_ray/cli/z.py", "Path('infra/dev/chaos.py')", "reaches out of the library for 'infra/dev/chaos.py'"),
    ("paths", "oral_ray/cli/z.py", "x = 'infra/configs/run.toml'", "reaches out of the library for 'infra/configs/run"),
    ("paths", "oral_ray/cli/z.py", "open('tests/tiny.toml')", "reaches out of the library for 'tests/tiny.toml'"),
    ("paths", "oral_ray/cli/z.py", "Path('serve') / 'page'", "reaches out of the library for 'serve'"),
    ("paths", "oral_ray/cli/z.py", "Path(__file__).resolve().parents[2]", "what lies beside the package, by __file__"),
    ("paths", "oral_ray/cli/z.py", "Path(__file__).parent.parent.parent", "what lies beside the package, by __file__"),
    (
        "paths",
        "oral_ray/cli/z.py",
        "x = dirname(dirname(dirname(__file__)))",
        "what lies beside the package, by __file__",
    ),
    ("sole importers", "oral_ray/store/z.py", "import ray", "oral_ray/store/z.py: imports ray, which only"),
    ("kinds", "oral_ray/store/z.py", "if spec.kind == 'causal': pass", "line 1 asks for the kind of base 'causal'"),
    ("kinds", "oral_ray/cli/z.py", "x = kind in ('unet', 'y')", "line 1 asks for the kind of base 'unet'"),
    ("kinds", "serve/z.py", "CLASS = {'encoder': 'AutoModel'}", "line 1 asks for the kind of base 'encoder'"),
    ("kinds", "jobs/z.py", "match kind:\n    case 'vision': pass", "line 2 asks for the kind of base 'vision'"),
    (
        "kinds",
        "oral_ray/bases/z.py",
        "if kind.startswith('image-text'): pass",
        "asks for the kind of base 'image-text'",
    ),
    ("kinds", "oral_ray/bases/z.py", "load_folder(folder, 'audio')", "asks for the kind of base 'audio'"),
    ("kinds", "oral_ray/bases/z.py", "load_folder(folder, kind='audio')", "asks for the kind of base 'audio'"),
    ("names", "oral_ray/store/utils.py", "", "oral_ray/store/utils.py: a junk-drawer name"),
    ("names", "oral_ray/bases/helpers/x.py", "", "oral_ray/bases/helpers/x.py: a junk-drawer name"),
    ("job lengths", "jobs/long.py", "x = 1\n" * 121, "jobs/long.py: 121 lines"),
    (
        "read fields",
        "oral_ray/config/z.py",
        "class A:\n    lost_key: int = 0",
        "config field A.lost_key is read nowhere",
    ),
    ("parameters", "jobs/z.py", "def f(a, b, c, /, d, e, *, g, h, i): ...", "jobs/z.py: f has 8 parameters, at most 7"),
    ("parameters", "serve/z.py", "class A:\n    async def f(self, a, b, c, d, e, g, h, i): ...", "f has 8 parameters"),
    (
        "records",
        "jobs/z.py",
        "class A(B):\n    c = ConfigDict(frozen=True, extra='forbid')",
        "line 2 spells out what a",
    ),
]


@pytest.mark.parametrize(("rule", "path", "text", "found"), PLANTED)
def test_a_planted_violation_is_found_by_its_rule_alone(house: Path, rule: str, path: str, text: str, found: str):
    plant(house, path, text)
    broken = broken_rules(house)
    assert {*broken} == {rule}
    [sentence] = broken[rule]
    assert found in sentence


def test_a_function_on_the_list_of_wide_ones_has_as_many_parameters_as_the_list_says():
    counts: dict[str, int] = {}
    for source in read_sources(ROOT).values():
        for name, number in parameter_counts(source):
            key = f"{source.path}:{name}"
            counts[key] = max(number, counts.get(key, 0))
    assert {key: counts.get(key) for key in WIDE_FUNCTIONS} == WIDE_FUNCTIONS


def test_a_room_that_imports_too_many_others_is_found(house: Path):
    others = ["tasks", "config", "objects", "modalities", "bases", "cluster", "adapters", "generator", "local"]
    for room in others:
        plant(house, f"oral_ray/{room}/__init__.py", "")
        plant(house, f"oral_ray/{room}/free.py", "")
    plant(house, "oral_ray/store/z.py", "\n".join(f"import oral_ray.{room}.free" for room in others[:-1]))
    plant(house, "oral_ray/version.py", "")
    plant(house, "oral_ray/store/two.py", "import oral_ray.version, oral_ray.errors")  # modules, no rooms
    assert violations(house) == []
    plant(house, "oral_ray/store/more.py", "import oral_ray.local.free")
    assert [*broken_rules(house)] == ["breadth"]
    assert violations(house)[0].startswith("room store imports 9 others, at most 8 are allowed: adapters, bases")


def test_every_rule_has_a_violation_that_is_planted_here():
    assert {rule for rule, *_ in PLANTED} | {"breadth"} == {*RULES}


def test_the_kinds_of_base_that_nobody_may_ask_for_are_those_that_there_are():
    assert {*KINDS} == {*MODALITIES}


def test_a_modality_may_ask_for_a_kind_and_a_text_may_name_one(house: Path):
    plant(house, "oral_ray/modalities/z.py", "if kind == 'causal': pass")
    plant(house, "oral_ray/cli/z.py", "print('an encoder'); word = 'encoder'")
    assert violations(house) == []


@pytest.mark.parametrize(
    "text",
    [
        "error(f'no generator in {uri}; run jobs/train.py first')",
        "'see docs/scale.md for figures'",
        "def f():\n    'The page: `docs/results`, by jobs/train.py.'",
        "get('jobs/open/')",
        "Path(__file__).parent / 'data'",
        "Path(__file__).resolve().parents[1] / 'tasks'",
        "import_module('json')",
        "import_module(f'oral_ray.cli.{name}')",
        "import_module(f'{__package__}.{name}')",
    ],
)
def test_a_hint_for_the_reader_and_what_lies_in_the_package_break_no_rule(house: Path, text: str):
    plant(house, "oral_ray/cli/z.py", text)
    assert violations(house) == []


def test_a_registry_may_load_the_files_of_its_folder_and_they_may_import_it(house: Path):
    plant(house, "oral_ray/store/arms/__init__.py", "")
    plant(house, "oral_ray/store/arms/registry.py", "import_module(f'oral_ray.store.arms.{name}')")
    plant(house, "oral_ray/store/arms/mean.py", "from oral_ray.store.arms.registry import Arm")
    assert violations(house) == []
    plant(house, "oral_ray/store/all.py", "import_module(f'oral_ray.store.arms.{name}')")
    plant(house, "oral_ray/store/arms/mean.py", "import oral_ray.store.all")
    assert [*broken_rules(house)] == ["circles"]


@pytest.mark.parametrize("package", sorted(SOLE_IMPORTERS))
@pytest.mark.parametrize("statement", ["import {}", "def f():\n    from {}.sub import x", "import_module('{}.sub')"])
def test_a_second_importer_of_a_package_with_one_owner_is_found(house: Path, package: str, statement: str):
    plant(house, "oral_ray/store/x.py", statement.format(package))
    broken = violations(house)
    assert len(broken) == 1
    assert broken[0].startswith(f"oral_ray/store/x.py: imports {package},")


@pytest.mark.parametrize(("package", "owners"), SOLE_IMPORTERS.items())
def test_the_owner_of_a_package_may_import_it(house: Path, package: str, owners: tuple[str, ...]):
    for owner in owners:
        plant(house, owner if owner.endswith(".py") else f"{owner}x.py", f"import {package}")
    assert violations(house) == []


def test_a_field_that_is_only_written_does_not_count_as_read(house: Path):
    plant(house, "oral_ray/config/z.py", "class A:\n    steps: int = 0\n    width: int = 0")
    plant(house, "oral_ray/bases/x.py", "a.steps = 1\nprint(a.width)")
    assert violations(house) == ["config field A.steps is read nowhere"]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_plans_and_reads_shapes_imports_no_torch_and_no_ray(module: str):
    assert loaded_by(f"import {module}") & {"torch", "ray", "transformers", "diffusers", "peft", "boto3"} == set()


def test_an_ingress_starts_without_the_packages_that_only_generators_need():
    assert loaded_by("import serve.app") & {"transformers", "peft", "deepspeed", "matplotlib"} == set()


def test_importing_oral_ray_loads_nothing_else_of_it_and_changes_no_environment():
    code = "import os; before = dict(os.environ); import oral_ray; assert dict(os.environ) == before"
    assert {name for name in loaded_by(code) if name.startswith("oral_ray")} == {"oral_ray"}


def test_no_module_that_workers_and_servers_share_loads_ray():
    names = [name for name, source in read_sources(ROOT).items() if source.room not in STARTS_RAY]
    names = [name for name in names if not name.startswith("serve")]
    assert "oral_ray.generation.factory" in names
    assert "ray" not in loaded_by("import " + ", ".join(names))


def broken_rules(root: Path) -> dict[str, list[str]]:
    """What breaks each rule that is broken."""
    sources = read_sources(root)
    graph = edges(sources)
    found = {name: list(rule(sources, graph)) for name, rule in RULES.items()}
    return {name: sentences for name, sentences in found.items() if sentences}


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running the code."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def plant(house: Path, path: str, text: str) -> None:
    (house / path).parent.mkdir(parents=True, exist_ok=True)
    (house / path).write_text(text)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small tree that breaks no rule."""
    for path, text in {
        "oral_ray/__init__.py": "",
        "oral_ray/config/__init__.py": "from oral_ray.errors import OralError",
        "oral_ray/errors.py": "class OralError(Exception): ...",
        "oral_ray/objects/__init__.py": "import oral_ray.errors",
        "oral_ray/bases/__init__.py": "",
        "oral_ray/bases/y.py": "from oral_ray.bases import x",
        "oral_ray/bases/x.py": "",
        "oral_ray/store/__init__.py": "",
        "oral_ray/store/records.py": "from oral_ray.objects import Objects\nfrom ..errors import OralError",
        "oral_ray/cli/__init__.py": "from oral_ray.store.records import Records",
        "jobs/train.py": "from oral_ray.cli import main",
        "jobs/corpus.py": "",
        "serve/app.py": "import fastapi",
    }.items():
        plant(tmp_path, path, text)
    assert violations(tmp_path) == []
    return tmp_path
