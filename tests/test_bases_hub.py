"""Bases of the hub: fetched, read from its cache of links with and without the network, or refused in one sentence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import GATED, HubServer
from huggingface_hub import constants

from oral_ray.adapters.artifact import Provenance, build_artifact, read_folder
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import describe_base
from oral_ray.bases.loading import import_base, open_base
from oral_ray.bases.sources import SourceFolder, local_path
from oral_ray.cli import main
from oral_ray.config import LoraSettings
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects


@pytest.fixture
def hub(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with `tiny/bert` and some repositories that are no checkpoints; an empty cache, and the network allowed."""
    shapes = tmp_path / "shapes"
    for name in ("bin", "variant", "nothing"):
        shutil.copytree(tiny_bert, shapes / name)
    (shapes / "bin/model.safetensors").rename(shapes / "bin/pytorch_model.bin")
    (shapes / "variant/model.safetensors").rename(shapes / "variant/model.fp16.safetensors")
    (shapes / "nothing/config.json").unlink()
    repositories = {f"tiny/{folder.name}": folder for folder in shapes.iterdir()} | {"tiny/bert": tiny_bert}
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
    with HubServer(repositories).running() as server:
        use(server.url, monkeypatch)
        yield server


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does in a new process."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def adapter(tiny_bert: Path, tmp_path: Path) -> Path:
    """An adapter folder for `tiny/bert`, with values that are not zero."""
    record = open_base(str(tiny_bert)).record
    layout = AdapterLayout.of(record.spec, LoraSettings(r=2), token_dim=16)
    rng = torch.Generator().manual_seed(0)
    factors = {
        slot.module: (torch.randn(2, slot.d_in, generator=rng), torch.randn(slot.d_out, 2, generator=rng))
        for slot in layout.slots
    }
    about = Provenance(origin="trained", base_id="tiny-bert", base_fingerprint=record.fingerprint)
    (tmp_path / "adapter").mkdir()
    for name, data in build_artifact(factors, layout, about).files().items():
        (tmp_path / "adapter" / name).write_bytes(data)
    return tmp_path / "adapter"


def refused(source: str) -> str:
    with pytest.raises(BaseModelError) as caught:
        open_base(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_hub_repository_is_the_base_that_its_files_are(hub: HubServer, tiny_bert: Path):
    fetched, local = open_base("hf:tiny/bert"), open_base(str(tiny_bert))
    assert fetched.record.fingerprint == local.record.fingerprint
    with local_path("hf:tiny/bert") as folder:
        assert (folder / "model.safetensors").is_symlink()
        assert describe_base(SourceFolder(folder), "", "x").spec == local.record.spec


@pytest.mark.parametrize("kind", ["main", "refs/pr/1", "commit"])
def test_a_revision_is_a_branch_a_reference_or_a_commit(hub: HubServer, kind: str):
    revision = hub.commit("tiny/bert") if kind == "commit" else kind
    with local_path(f"hf:tiny/bert@{revision}") as folder:
        assert folder.name == hub.commit("tiny/bert")


def test_inspect_fetches_config_json_and_nothing_else(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["inspect", "hf:tiny/bert", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_type"] == "bert"
    assert {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path} == {"config.json"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["inspect", "hf:tiny/bert"]) == 0, "the cache has it"


def test_a_filled_cache_is_enough_without_the_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    online = open_base("hf:tiny/bert").record.fingerprint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert open_base("hf:tiny/bert").record.fingerprint == online
    assert len(hub.asked) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use("http://127.0.0.1:9", monkeypatch)
    assert open_base("hf:tiny/bert").record.fingerprint == online


def test_what_the_cache_holds_in_part_is_no_base_without_the_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    assert main(["inspect", "hf:tiny/bert"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "in the hub's cache in part only" in refused("hf:tiny/bert")
    assert "hf download tiny/bert" in refused("hf:tiny/bert")


def test_a_snapshot_folder_is_a_source_with_its_links(hub: HubServer, objects: FileObjects, tmp_path: Path):
    with local_path("hf:tiny/bert") as snapshot:
        pass
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "hub", moved, symlinks=True)
    folder = moved / snapshot.relative_to(tmp_path / "hub")
    wanted = open_base(str(snapshot)).record.fingerprint
    assert open_base(f"file://{folder}").record.fingerprint == wanted
    import_base(str(folder), objects, "bases/v1/")
    assert describe_base(objects, "bases/v1/", "v1").fingerprint == wanted
    assert not any(path.is_symlink() for path in (objects.root / "bases/v1").iterdir())


def test_an_import_from_the_hub_copies_files_and_no_links(hub: HubServer, objects: FileObjects, tiny_bert: Path):
    import_base("hf:tiny/bert", objects, "bases/v1/")
    assert {path.name for path in (objects.root / "bases/v1").iterdir()} == {path.name for path in tiny_bert.iterdir()}
    assert describe_base(objects, "bases/v1/", "v1").fingerprint == open_base(str(tiny_bert)).record.fingerprint


def test_verify_and_score_read_a_base_of_the_hub(hub: HubServer, adapter: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(adapter), "--base", "hf:tiny/bert", "--digest", read_folder(adapter).digest]) == 0
    capsys.readouterr()
    score = ["score", str(adapter), "--base", "hf:tiny/bert@main", "--task", "wordnet/matter", "--limit", "5"]
    assert main(score) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 5


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf:tiny/none", "has none of that name, or it is private; check the name, or log in (hf auth login)"),
        (f"hf:{GATED}", "is gated; accept its terms at"),
        ("hf:tiny/bert@v9", "it has no revision 'v9'; check the branch, tag or commit"),
        ("hf:a/b/c", "that is no repository; say hf:ORG/NAME or hf:ORG/NAME@REVISION"),
        ("hf:", "that is no repository; say hf:ORG/NAME or hf:ORG/NAME@REVISION"),
        (
            "hf:tiny/bin",
            "'tiny/bin' has pickle weights only (pytorch_model.bin), and pickle files are never read; load",
        ),
        ("hf:tiny/variant", "has weights under another name (model.fp16.safetensors); rename"),
        ("hf:tiny/nothing", "has weights (model.safetensors) and no config.json"),
        (
            "https://huggingface.co/tiny/bert",
            "a source is a folder, file://..., s3://..., hf:ORG/NAME or pypi:DIST/PATH",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_sentence_with_its_remedy(hub: HubServer, source: str, reason: str):
    assert reason in refused(source)


def test_without_a_network_and_without_a_cache_the_sentence_says_which_of_the_two(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set and tiny/bert is not whole in" in refused("hf:tiny/bert")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use("http://127.0.0.1:9", monkeypatch)
    assert "http://127.0.0.1:9 cannot be reached" in refused("hf:tiny/bert")
    assert "check the network and HF_ENDPOINT" in refused("hf:tiny/bert")


def test_inspect_of_a_repository_without_config_json_says_so(hub: HubServer, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", "hf:tiny/nothing"]) == 2
    assert "it has no config.json; is it a model that transformers loads?" in capsys.readouterr().err
