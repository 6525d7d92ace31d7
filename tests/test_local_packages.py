"""Files out of packages: only what is asked for, kept once, and nothing that leaves its folder."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from oral_ray.errors import OralError
from oral_ray.local import packages
from oral_ray.local.packages import unpacked

FILES = {"p-1/data/a/x.json": b"ax", "p-1/data/b/x.json": b"bx", "p-1/data/c/x.json": b"cx", "p-1/setup.py": b"raise"}
PATTERN = r".*/data/((?:a|b)/x\.json)"


def archive(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    path = folder / {"zip": "p-1-py3-none-any.whl", "tar": "p-1.tar.gz"}[kind]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in files.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache; every call of the package index is noted here, and answered by `serve`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return []


def serve(monkeypatch: pytest.MonkeyPatch, calls: list[str], path: Path) -> None:
    def fetched(requirement: str, folder: Path) -> Path:
        calls.append(requirement)
        return path

    monkeypatch.setattr(packages, "_fetched", fetched)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_that_match_are_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], kind: str
):
    serve(monkeypatch, calls, archive(tmp_path, kind, FILES))
    for _ in range(2):
        folder = unpacked("p==1", PATTERN)
        assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
            "a/x.json": b"ax", "b/x.json": b"bx",
        }  # fmt: skip
    assert calls == ["p==1"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing temporary is left"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["p-1/data/../../../x.json", "p-1/data//etc/x.json", "p-1/data/a\\x.json"])
def test_a_name_that_leaves_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], kind: str, name: str
):
    serve(monkeypatch, calls, archive(tmp_path, kind, {name: b"x"}))
    with pytest.raises(OralError, match="would leave its folder"):
        unpacked("p==1", r"p-1/data/(.*x\.json)")
    assert list((tmp_path / "cache/oral-ray/packages").iterdir()) == []


def test_a_package_without_such_a_file_is_an_error_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
):
    serve(monkeypatch, calls, archive(tmp_path, "zip", FILES))
    for _ in range(2):
        with pytest.raises(OralError, match=r"p-1-py3-none-any.whl has no file like '\.\*/none'"):
            unpacked("p==1", r".*/none")
    assert calls == ["p==1", "p==1"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_damaged_archive_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], kind: str
):
    path = archive(tmp_path, kind, FILES)
    path.write_bytes(path.read_bytes()[:40])
    serve(monkeypatch, calls, path)
    with pytest.raises(OralError, match=r"p-1.* cannot be unpacked: .*; fetch it again"):
        unpacked("p==1", PATTERN)


def test_what_pip_says_is_passed_on(calls: list[str], monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: x\nERROR: No matching distribution found for p==9\n"
        )

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(OralError, match=r"package p==9 could not be fetched: ERROR: No matching .*; check the conn"):
        unpacked("p==9", PATTERN)
