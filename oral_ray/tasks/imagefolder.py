"""Styles of images as tasks: a folder of captioned images by the Hugging Face imagefolder convention, and a task.toml.

    # task.toml
    style = "pixel art portraits"       # what the images are, for the wordings of the prompt
    prompts = ["Draw people as sprites of an old game."]    # optional, put before the generated wordings
    name = "pixel-art"                  # optional, what the task is called; the folder's name by default

    # metadata.jsonl, one line per image; further keys are passed over
    {"file_name": "0001.png", "text": "a woman with red hair and glasses"}

A caption's hash decides in which split its images are, so held-out captions are new. The fingerprint of the task covers the
bytes of every image.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oral_ray.errors import TaskError
from oral_ray.tasks.images import SUFFIXES, check_image
from oral_ray.tasks.prompts import style_paraphrases
from oral_ray.tasks.task import Example, ImageRef, Split, Task, balanced_order, same_text, split_of

METADATA = "metadata.jsonl"
NUM_SHOWN = 10  # faults that are spelled out


class StyleHeader(BaseModel):
    """What task.toml of a style says."""

    model_config = ConfigDict(extra="forbid")

    style: str = Field(min_length=1)
    prompts: tuple[str, ...] = ()
    name: str | None = None


def is_image_folder(folder: Path) -> bool:
    """Whether a task folder holds captioned images."""
    return (folder / METADATA).exists()


def load_image_folder(folder: Path, header_text: str, task_id: str) -> Task:
    """Read a folder of captioned images; TaskError names the file and line of what is wrong, and of several faults each."""
    header = read_style_header(header_text, f"{folder}/task.toml")
    faults: list[str] = []
    examples: list[Example] = []
    captioned: set[str] = set()
    for where, line in _lines(folder):
        try:
            name, example = _example(folder, line)
            if name in captioned:
                raise ValueError(f"{name!r} has a caption already; name each image once")
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        captioned.add(name)
        examples.append(example)
    faults += _without_caption(folder, captioned, bool(faults))
    if not examples and not faults:
        faults.append(f"{folder / METADATA} names no image; write one line per image")
    if faults:
        more = [f"and {len(faults) - NUM_SHOWN} more"] if len(faults) > NUM_SHOWN else []
        raise TaskError("; ".join(faults[:NUM_SHOWN] + more))
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        splits[split_of(same_text(example.text))].append(example)
    wordings, held_out = style_paraphrases(header.style)
    return Task(
        id=task_id,
        labels=(),
        prompts=tuple(dict.fromkeys((*header.prompts, *wordings))),
        held_out_prompts=held_out,
        train=balanced_order(splits["train"]),
        validation=balanced_order(splits["validation"]),
        test=balanced_order(splits["test"]),
    )


def read_style_header(text: str, where: str) -> StyleHeader:
    """What the task.toml of a style says; TaskError for anything else."""
    try:
        header = StyleHeader.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{where} is not valid TOML: {error}") from None
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise TaskError(
            f"{where}: {'; '.join(reasons)} (of a folder of images its keys are {', '.join(StyleHeader.model_fields)})"
        ) from None
    if empty := [prompt for prompt in (header.style, *header.prompts) if not prompt.strip()]:
        raise TaskError(f"{where}: {empty[0]!r} is empty; describe the style in a few words")
    return header


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    path = folder / METADATA
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is no utf-8 (byte {error.start}); save it as utf-8") from None
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        yield f"{path}:{number}", line


def _example(folder: Path, line: str) -> tuple[str, Example]:
    """The image's name and the example of a line; ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f'no {{"file_name": ..., "text": ...}}: {line.strip()[:60]!r}') from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError("has no file_name")
    name, caption = row["file_name"], row.get("text")
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"{name!r} has no caption; write it as text, or remove the line and the image")
    if any("\ud800" <= char <= "\udfff" for char in name + caption):
        raise ValueError("holds half a character, which is no Unicode text")
    inside = PurePosixPath(name)
    path = folder / inside
    if inside.is_absolute() or ".." in inside.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} lies outside the folder; put the image into it")
    if not path.is_file():
        raise ValueError(f"{name!r} is not there; add the image, or remove the line")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name!r} cannot be read: {error.strerror}") from None
    try:
        check_image(data)
    except ValueError as error:
        raise ValueError(f"{name!r} {error}") from None
    image = ImageRef(digest=hashlib.sha256(data).hexdigest(), path=str(path.resolve()))
    return str(inside), Example(text=caption, label="", image=image)


def _without_caption(folder: Path, captioned: set[str], others: bool) -> list[str]:
    """A sentence for an image that no line names; none where faulty lines may be those of the images."""
    lost = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.relative_to(folder).as_posix() not in captioned
    ]
    if not lost or others:
        return []
    return [
        f"{len(lost)} images have no caption in {METADATA}, the first is {lost[0]!r}; write a line for each, or remove them"
    ]
