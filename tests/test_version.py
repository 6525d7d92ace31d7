"""The code says which it is: its version, and the commit where one is known."""

import re
import subprocess
from pathlib import Path

import pytest

from oral_ray import __version__, version

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ORAL_COMMIT", raising=False)
    version.code_version.cache_clear()
    yield
    version.code_version.cache_clear()


def commit(folder: Path) -> None:
    (folder / "file").write_text("")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def test_an_image_says_the_commit_it_was_built_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ORAL_COMMIT", "1a2b3c4d5e6f")
    assert version.code_version() == f"{__version__}+1a2b3c4d5e6f"


def test_a_clone_asks_git_and_says_when_it_has_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "oral_ray").mkdir()
    (tmp_path / "oral_ray/version.py").write_text("")
    monkeypatch.setattr(version, "__file__", str(tmp_path / "oral_ray/version.py"))
    assert version.code_version() == __version__, "no clone"
    version.code_version.cache_clear()
    commit(tmp_path)
    clean = version.code_version()
    assert re.fullmatch(re.escape(__version__) + r"\+[0-9a-f]{12}", clean)
    version.code_version.cache_clear()
    (tmp_path / "oral_ray/version.py").write_text("changed")
    assert version.code_version() == f"{clean}.dirty"


def test_a_package_installed_below_another_clone_is_not_of_that_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "venv/oral_ray").mkdir(parents=True)
    commit(tmp_path)
    monkeypatch.setattr(version, "__file__", str(tmp_path / "venv/oral_ray/version.py"))
    assert version.code_version() == __version__
