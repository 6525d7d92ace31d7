"""Signatures: written before the marker, in no digest; what is not exactly what a key signed is refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from nightly_fixtures import key_pair

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.cli import main
from oral_ray.errors import ArtifactError, ConfigError
from oral_ray.objects import FileObjects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.fsck import find_faults
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore
from oral_ray.store.signing import SIGNATURE, signer_name

MakeArtifact = Callable[..., AdapterArtifact]
WHERE = "published/b/id"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "ours")


@pytest.fixture
def signed(objects: FileObjects, make_artifact: MakeArtifact, keys: tuple[Path, Path]) -> tuple[AdapterStore, str]:
    """A store with one signed adapter, and its digest."""
    store = AdapterStore(objects)
    digest = store.put(make_artifact())
    store.publish(digest, "published", "b", "id", keys[0])
    return store, digest


def test_the_signature_is_written_before_the_marker_and_changes_no_digest(
    objects: FileObjects, make_artifact: MakeArtifact, keys: tuple[Path, Path], tmp_path: Path
):
    written: list[str] = []

    class Recorded(FileObjects):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            written.append(key.rpartition("/")[2])
            return super().put_if_absent(key, data)

    store, artifact = AdapterStore(Recorded(objects.root)), make_artifact()
    digest = store.put(artifact)
    written.clear()
    store.publish(digest, "published", "b", "id", keys[0])
    assert written == ["README.md", "provenance.json", SIGNATURE, "adapter_config.json"]
    pulled = store.pull_published(WHERE, digest, tmp_path / "pulled", keys[1])
    assert read_folder(pulled).digest == artifact.digest
    assert {path.name for path in pulled.iterdir()} == {*written, "adapter_model.safetensors"}
    assert signer_name(keys[0]) == signer_name(keys[1])


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "provenance.json", "README.md", SIGNATURE]
)
@pytest.mark.parametrize("damage", ["flip", "empty", "lost"])
def test_a_changed_byte_or_a_lost_file_is_refused_in_one_line(
    objects: FileObjects,
    signed: tuple[AdapterStore, str],
    keys: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    damage: str,
):
    store, digest = signed
    data = bytearray(objects.get(f"{WHERE}/{name}"))
    if damage == "lost":
        objects.delete(f"{WHERE}/{name}")
    else:
        data[len(data) // 2] ^= 1
        objects.put(f"{WHERE}/{name}", bytes(data) if damage == "flip" else b"")
    with pytest.raises(ArtifactError) as caught:
        store.pull_published(WHERE, digest, tmp_path / "pulled", keys[1])
    assert "\n" not in str(caught.value)
    assert WHERE in str(caught.value) or "damaged" in str(caught.value)
    assert not (tmp_path / "pulled").exists()


def test_another_key_is_refused_and_so_is_another_adapters_signature(
    objects: FileObjects,
    signed: tuple[AdapterStore, str],
    keys: tuple[Path, Path],
    make_artifact: MakeArtifact,
    tmp_path: Path,
):
    store, digest = signed
    _, other = key_pair(tmp_path, "other")
    with pytest.raises(
        ArtifactError, match=r"published/b/id: model.sig is no signature .* by .*other.pub \(Key mismatch"
    ):
        store.check_published(WHERE, digest, other)
    second = store.put(make_artifact(seed=2))
    store.publish(second, "published", "b", "second", keys[0])
    objects.put(f"{WHERE}/{SIGNATURE}", objects.get(f"published/b/second/{SIGNATURE}"))
    with pytest.raises(ArtifactError, match=r"no signature of these files .*Signature mismatch"):
        store.check_published(WHERE, digest, keys[1])


def test_the_first_signature_stays_and_an_unsigned_folder_is_signed_by_publishing_it_again(
    objects: FileObjects, make_artifact: MakeArtifact, keys: tuple[Path, Path]
):
    store = AdapterStore(objects)
    digest = store.put(make_artifact())
    store.publish(digest, "published", "b", "id")
    with pytest.raises(ArtifactError, match=SIGNATURE):
        store.check_published(WHERE, digest, keys[1])
    store.publish(digest, "published", "b", "id", keys[0])
    store.check_published(WHERE, digest, keys[1])
    first = objects.get(f"{WHERE}/{SIGNATURE}")
    store.publish(digest, "published", "b", "id", keys[0])
    assert objects.get(f"{WHERE}/{SIGNATURE}") == first


def test_the_commands_pull_promote_and_check_only_what_a_key_signed(
    objects: FileObjects, signed: tuple[AdapterStore, str], keys: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    _, digest = signed
    adapter = ReleasedAdapter(task="t", arm="a", adapter_id="id", digest=digest, uri="u", score=1.0, scores={})
    ReleaseStore(objects).append(
        Release(base_id="b", base_fingerprint="f", generator="g", name="r", adapters=(adapter,))
    )
    _, other = key_pair(tmp_path, "other")
    where = ["--store", str(objects.root)]
    for number, (key, code) in enumerate(((keys[1], 0), (other, 2))):
        assert main(["pull", "b/id", str(tmp_path / f"p{number}"), "--public-key", str(key), *where]) == code
        assert main(["release", "alias", "b", f"prod{number}", "1", "--public-key", str(key), *where]) == code
        faults = list(find_faults(objects, public_key=key))
        assert len(faults) == (code != 0)
    assert "other.pub (Key mismatch" in capsys.readouterr().err
    assert ReleaseStore(objects).aliases("b", "r") == ["prod0"]
    assert main(["pull", digest, str(tmp_path / "x"), "--public-key", str(keys[1]), *where]) == 2
    assert "only published adapters are signed" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "nonsense"])
def test_a_key_that_is_none_is_an_error_of_the_configuration(
    signed: tuple[AdapterStore, str], tmp_path: Path, text: str | None
):
    store, digest = signed
    if text is not None:
        (tmp_path / "bad.pem").write_text(text)
    for ask in (
        lambda: store.check_published(WHERE, digest, tmp_path / "bad.pem"),
        lambda: store.publish(digest, "published", "b", "new", tmp_path / "bad.pem"),
        lambda: signer_name(tmp_path / "bad.pem"),
    ):
        with pytest.raises(ConfigError, match=r"bad.pem is no key in PEM form"):
            ask()
    assert not store._objects.exists("published/b/new/adapter_config.json")
