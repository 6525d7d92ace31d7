"""Folders of captioned images are tasks: any mode and size becomes RGB, what is wrong is named, workers get the images."""

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline_fixtures import CAPTIONS, image_folder

from oral_ray.bases.loading import open_base
from oral_ray.bases.tokenizer import check_task
from oral_ray.errors import StoreError, TaskError
from oral_ray.objects import FileObjects
from oral_ray.pipeline.own_tasks import Tasks
from oral_ray.store.tasks import damaged_tasks, get_task, put_task
from oral_ray.tasks import Example, Task, load_task, read_folder
from oral_ray.tasks.images import MAX_PIXELS, check_image, rgb_pixels
from oral_ray.tasks.task import few_shot, instructed, shuffled


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/oral-ray"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "stripes")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def plain(mode: str, colour: object, size: tuple[int, int] = (20, 12)) -> Image.Image:
    return Image.new(mode, size, colour)  # pyright: ignore[reportArgumentType]


def palette(transparency: int | None) -> bytes:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


def animated() -> bytes:
    frames = [plain("RGB", colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


MODES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "RGB": (encoded(plain("RGB", (1, 2, 3))), (1, 2, 3)),
    "grey": (encoded(plain("L", 77)), (77, 77, 77)),
    "one bit": (encoded(plain("1", 1)), (255, 255, 255)),
    "palette": (palette(None), (10, 200, 30)),
    "palette with a clear colour": (palette(1), (255, 255, 255)),
    "half clear black": (encoded(plain("RGBA", (0, 0, 0, 128))), (127, 127, 127)),
    "clear grey": (encoded(plain("LA", (5, 0))), (255, 255, 255)),
    "16 bit": (encoded(plain("I;16", 257 * 40)), (40, 40, 40)),
    "CMYK": (encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "animated": (animated(), (254, 0, 0)),
    "WebP": (encoded(plain("RGBA", (0, 255, 0, 255)), "WEBP", lossless=True), (0, 255, 0)),
}


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_become_rgb_of_the_size_of_the_base(mode: str):
    data, colour = MODES[mode]
    pixels = rgb_pixels(data, 8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - colour).max() <= 1, pixels[0, 0]


def test_the_square_in_the_middle_is_taken_and_turned_as_the_camera_says():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert rgb_pixels(encoded(Image.fromarray(wide)), 10).min() == 255
    marked = np.zeros((10, 10, 3), np.uint8)
    marked[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert rgb_pixels(encoded(Image.fromarray(marked), exif=exif), 10)[-1].min() == 255


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 30,000 x 30,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def large() -> bytes:
    """More pixels than are read, and fewer than what Pillow refuses by itself."""
    side = int(MAX_PIXELS**0.5) + 1
    return encoded(Image.new("1", (side, side)))


def noisy() -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)))


NO_IMAGES: dict[str, tuple[bytes, str]] = {
    "truncated": (noisy()[:-2000], "is cut off or damaged"),
    "bomb": (bomb(), "at most 64,000,000 are read"),
    "large": (large(), "at most 64,000,000 are read"),
    "text": (b"no image at all", "is no image that is read here"),
    "empty": (b"", "is no image that is read here"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image that is read here"),
    "floats": (encoded(plain("F", 0.5), "TIFF"), "floating-point pixels"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_whole_image_is_refused_with_the_reason(name: str):
    data, reason = NO_IMAGES[name]
    with pytest.raises(ValueError, match=reason):
        check_image(data)


def test_a_folder_of_captioned_images_is_a_task_of_its_style(folder: Path):
    task = load_task(str(folder))
    assert task.id == "folder/stripes" and task.labels == ()
    assert task.prompt == "Draw striped pictures." and len(task.prompts) == 32 and len(task.held_out_prompts) == 8
    texts = [{example.text for example in task.examples(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, texts)) == len(CAPTIONS) and set().union(*texts) == set(CAPTIONS)
    assert not texts[0] & texts[2], "held-out captions are new"
    assert len(task.images) == len(CAPTIONS)


def test_images_are_refused_for_a_base_that_reads_and_texts_for_one_that_draws(folder: Path, tiny_bert: Path):
    text_base = open_base(str(tiny_bert))
    with pytest.raises(
        TaskError, match="its examples are images, and this base reads text; give it to a base that draws"
    ):
        check_task(text_base.record, text_base.tokenizer, load_task(str(folder)))
    spec = text_base.record.spec.model_copy(update={"kind": "unet"})
    with pytest.raises(TaskError, match="its examples have no images, and this base draws them"):
        check_task(text_base.record.model_copy(update={"spec": spec}), None, load_task("wordnet/mind"))


def test_images_of_one_caption_are_in_one_split(tmp_path: Path):
    folder = image_folder(tmp_path / "twice", (*CAPTIONS, *(f" {caption}" for caption in CAPTIONS)))
    task = read_folder(str(folder))
    assert len(task.train) % 2 == 0 and len(task.test) % 2 == 0


def test_the_fingerprint_of_a_task_covers_the_bytes_of_its_images_and_not_their_place(folder: Path, tmp_path: Path):
    task = read_folder(str(folder))
    moved = read_folder(str(shutil.copytree(folder, tmp_path / "moved")))
    assert moved.fingerprint == task.fingerprint and "path" not in task.model_dump_json()
    image = np.array(Image.open(folder / "3.png"))
    image[0, 0] ^= 1
    Image.fromarray(image).save(folder / "3.png")
    assert read_folder(str(folder)).fingerprint != task.fingerprint


def test_a_task_of_texts_has_the_fingerprint_that_it_always_had():
    example = Example(text="a", label="b")
    assert example.model_dump(mode="json") == {"text": "a", "label": "b"}


def rewrite(folder: Path, number: int, **row: object) -> None:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    found = json.loads(lines[number]) | row
    lines[number] = json.dumps({key: value for key, value in found.items() if value is not None})
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def line(number: int, **row: object) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, number, **row)


def bytes_of(data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / "3.png").write_bytes(data))


def void(_: object) -> None:
    return None


def link_out(folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "3.png").unlink()
    (folder / "3.png").symlink_to(folder.parent / "outside.png")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing file": (lambda f: (f / "3.png").unlink(), r"metadata.jsonl:4: '3.png' is not there; add the image"),
    "truncated": (bytes_of(noisy()[:-2000]), r"metadata.jsonl:4: '3.png' cannot be read, it is cut off"),
    "bomb": (bytes_of(bomb()), r"metadata.jsonl:4: '3.png' has .* at most 64,000,000"),
    "no caption": (line(3, text=None), r"metadata.jsonl:4: '3.png' has no caption"),
    "empty caption": (line(3, text=" "), r"metadata.jsonl:4: '3.png' has no caption"),
    "half a character": (line(3, text="a \ud800"), r"metadata.jsonl:4: holds half a character"),
    "no file name": (line(3, file_name=None), r"metadata.jsonl:4: has no file_name"),
    "twice": (line(3, file_name="2.png"), r"metadata.jsonl:4: '2.png' has a caption already"),
    "outside": (line(3, file_name="../x.png"), r"metadata.jsonl:4: '../x.png' lies outside the folder"),
    "absolute": (line(3, file_name="/etc/passwd"), r"'/etc/passwd' lies outside the folder"),
    "link": (link_out, r"'3.png' lies outside the folder"),
    "no JSON": (lambda f: void((f / "metadata.jsonl").write_text("{")), r"metadata.jsonl:1: no {\"file_name\""),
    "image without a line": (
        lambda f: void((f / "new.png").write_bytes(noisy())), r"1 images have no caption .* the first is 'new.png'",
    ),
    "no style": (lambda f: void((f / "task.toml").write_text("")), r"task.toml: style: Field required"),
    "labels": (
        lambda f: void((f / "task.toml").write_text('style = "x"\nlabels = ["a", "b"]')), r"labels: Extra inputs .* keys",
    ),
    "bad name": (lambda f: void((f / "task.toml").write_text('style = "x"\nname = "A B"')), "name 'A B' in task.toml"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_in_a_folder_of_images_is_named(folder: Path, fault: str):
    harm, reason = FAULTS[fault]
    harm(folder)
    with pytest.raises(TaskError, match=reason):
        read_folder(str(folder))


def test_every_fault_is_named_at_once(folder: Path):
    (folder / "3.png").unlink()
    rewrite(folder, 5, text="")
    with pytest.raises(TaskError, match=r"'3.png' is not there.*; .*metadata.jsonl:6: '5.png' has no caption"):
        read_folder(str(folder))


def test_a_worker_reads_the_images_of_a_task_from_the_store(folder: Path, objects: FileObjects, own_cache: Path):
    task = read_folder(str(folder))
    put_task(objects, task)
    wanted = {digest: Path(image.path).read_bytes() for digest, image in task.images.items()}
    shutil.rmtree(folder)
    found = Tasks(objects, {task.id: task.fingerprint}).get(task.id)
    assert found.fingerprint == task.fingerprint
    assert {digest: Path(image.path).read_bytes() for digest, image in found.images.items()} == wanted
    assert all(Path(image.path).is_relative_to(own_cache) for image in found.images.values())
    assert not list(damaged_tasks(objects))
    put_task(objects, found)


def test_an_archive_of_images_that_is_lost_or_damaged_is_named(folder: Path, objects: FileObjects):
    task = read_folder(str(folder))
    put_task(objects, task)
    [key] = [info.key for info in objects.list("tasks/") if info.key.endswith(".zip")]
    data = bytearray(objects.get(key))
    whole, data[100] = bytes(data), data[100] ^ 1
    objects.put(key, bytes(data))
    assert any(key in fault for fault in damaged_tasks(objects))
    with pytest.raises(StoreError, match="is damaged; name the task's folder again"):
        get_task(objects, task.id, task.fingerprint)
    put_task(objects, task)
    assert objects.get(key) == whole and get_task(objects, task.id, task.fingerprint).images
    objects.delete(key)
    assert any("has lost its images" in fault for fault in damaged_tasks(objects))


def test_an_archive_with_another_image_under_a_digest_is_refused(folder: Path, objects: FileObjects):
    task = read_folder(str(folder))
    put_task(objects, task)
    [key] = [info.key for info in objects.list("tasks/") if info.key.endswith(".zip")]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for digest in task.images:
            archive.writestr(digest, noisy())
    objects.put(key, buffer.getvalue())
    with pytest.raises(StoreError, match="is damaged; name the task's folder again"):
        get_task(objects, task.id, task.fingerprint)


def test_an_image_that_changes_while_a_task_is_kept_is_refused(folder: Path, objects: FileObjects):
    task = read_folder(str(folder))
    (folder / "3.png").write_bytes(noisy())
    with pytest.raises(StoreError, match=r"3.png' was changed while the task was read"):
        put_task(objects, task)


def test_two_styles_of_the_same_captions_are_about_two_things(folder: Path, tmp_path: Path, objects: FileObjects):
    image_folder(tmp_path / "dots", size=24)
    (tmp_path / "dots/task.toml").write_text('style = "dots"')
    tasks: list[Task] = [read_folder(str(place)) for place in (folder, tmp_path / "dots")]
    for task in tasks:
        put_task(objects, task)
    known = Tasks(objects, {task.id: task.fingerprint for task in tasks})
    assert len({known.subject(task.id) for task in tasks}) == 2


def test_variants_of_a_task_keep_its_images_or_deal_them_out_anew(folder: Path):
    task = read_folder(str(folder))
    dealt = shuffled(task)
    assert [e.text for e in dealt.train] == [e.text for e in task.train]
    before, after = ([e.image.digest for e in of.train if e.image] for of in (task, dealt))
    assert before != after and sorted(before) == sorted(after)
    assert [e.image for e in instructed(task).test] == [e.image for e in task.test]
    with pytest.raises(TaskError, match="no image is shown as an example"):
        few_shot(task)
