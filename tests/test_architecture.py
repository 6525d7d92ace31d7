"""The house keeps its rules, and each rule is seen to catch a violation planted in a small fake tree."""

import subprocess
import sys
from pathlib import Path

import pytest
from architecture import FLOORS, SOLE_IMPORTERS, edges, read_sources, violations

ROOT = Path(__file__).parents[1]
TORCH_FREE = (
    "oral_ray.config", "oral_ray.objects", "oral_ray.nightly.plan", "oral_ray.cli", "oral_ray.tasks", "oral_ray.bases.spec",
    "oral_ray.bases.skeleton", "oral_ray.bases.headers", "oral_ray.bases.sources", "oral_ray.adapters.layout",
)  # fmt: skip


def test_the_house_breaks_none_of_its_rules():
    assert violations(ROOT) == []


def test_the_rules_see_the_rooms_and_imports_that_there_are():
    sources = read_sources(ROOT)
    rooms = {source.room for source in sources.values()} - {""}
    assert rooms >= {room for floor in FLOORS for room in floor}
    graph = edges(sources)
    assert {"oral_ray.objects", "oral_ray.errors"} <= graph["oral_ray.store.records"]
    assert "oral_ray.pipeline.corpus" in graph["jobs.corpus"]
    assert "oral_ray.generation.service" in graph["oral_ray.cli"]  # an import inside a function counts


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("oral_ray/bases/x.py", "from oral_ray.store import records", "oral_ray/bases/x.py: bases imports"),
        ("oral_ray/bases/x.py", "from ..store.records import Records", "oral_ray/bases/x.py: bases imports"),
        ("oral_ray/store/x.py", "def f():\n    import oral_ray.cli", "oral_ray/store/x.py: store imports"),
        ("oral_ray/config.py", "import oral_ray.objects", "oral_ray/config.py: config imports"),
        ("oral_ray/cli.py", "import jobs.corpus", "oral_ray/cli.py: cli imports jobs.corpus"),
        ("oral_ray/cli.py", "from serve import app", "oral_ray/cli.py: cli imports serve.app"),
        ("oral_ray/__init__.py", "import oral_ray.objects", "oral_ray/__init__.py: oral_ray imports"),
        ("oral_ray/shed/x.py", "", "room 'shed' stands on no floor"),
        ("oral_ray/store/utils.py", "", "oral_ray/store/utils.py: a junk-drawer name"),
        ("oral_ray/bases/helpers/x.py", "", "oral_ray/bases/helpers/x.py: a junk-drawer name"),
        ("jobs/long.py", "x = 1\n" * 121, "jobs/long.py: 121 lines"),
        ("oral_ray/config.py", "class A:\n    lost_key: int = 0", "config field A.lost_key is read nowhere"),
        ("oral_ray/bases/x.py", "from oral_ray.bases import y", "oral_ray.bases.x -> oral_ray.bases.y"),
    ],
)
def test_a_planted_violation_is_found(house: Path, path: str, text: str, found: str):
    plant(house, path, text)
    broken = violations(house)
    assert len(broken) == 1
    assert found in broken[0]


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
    plant(house, "oral_ray/config.py", "class A:\n    steps: int = 0\n    width: int = 0")
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
    names = [
        name for name, source in read_sources(ROOT).items() if source.room not in ("cluster", "stages", "bench", "jobs")
    ]
    names = [name for name in names if not name.startswith("serve")]
    assert "oral_ray.generation.factory" in names
    assert "ray" not in loaded_by("import " + ", ".join(names))


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
        "oral_ray/config.py": "from oral_ray.errors import OralError",
        "oral_ray/errors.py": "class OralError(Exception): ...",
        "oral_ray/objects.py": "import oral_ray.errors",
        "oral_ray/bases/__init__.py": "",
        "oral_ray/bases/y.py": "from oral_ray.bases import x",
        "oral_ray/bases/x.py": "",
        "oral_ray/store/__init__.py": "",
        "oral_ray/store/records.py": "from oral_ray.objects import Objects\nfrom ..errors import OralError",
        "oral_ray/cli.py": "from oral_ray.store.records import Records",
        "jobs/train.py": "from oral_ray.cli import main",
        "jobs/corpus.py": "",
        "serve/app.py": "import fastapi",
    }.items():
        plant(tmp_path, path, text)
    assert violations(tmp_path) == []
    return tmp_path
