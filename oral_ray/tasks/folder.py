"""Tasks of your own: a folder with `task.toml` and `train.jsonl`, `validation.jsonl`, `test.jsonl`.

    # task.toml
    labels = ["refund", "delivery"]
    text = "a customer mail"            # what an input is, for the wordings of the prompt
    prompts = ["Route a customer mail to refund or delivery."]    # optional, put before the generated wordings
    name = "routing"                    # optional, what the task is called; the folder's name by default
    metric = "macro_f1"                 # optional, what it is scored by; accuracy by default

Each line of a .jsonl file is `{"text": "...", "label": "..."}`. Files are UTF-8. The task's id is `folder/<name>`.
A folder with metadata.jsonl is one of captioned images (`imagefolder`).
"""

import codecs
import json
import logging
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oral_ray.errors import TaskError
from oral_ray.tasks.imagefolder import is_image_folder, load_image_folder, read_style_header
from oral_ray.tasks.prompts import paraphrases
from oral_ray.tasks.task import Example, Split, Task, same_text

logger = logging.getLogger(__name__)
SOURCE = "folder"  # `folder/<name>` is the id of a task that was read from a folder
HEADER = "task.toml"
MAX_NAME_CHARS = 40  # with `folder-` before and `-<12 digits>` behind it is still a DNS label
NUM_SHOWN = 10  # faults that are spelled out
MAX_LINE_CHARS = 1_000_000  # a model reads the first few hundred words of a text
_NAME = re.compile(rf"(?=.{{1,{MAX_NAME_CHARS}}}$)[a-z0-9]+(-+[a-z0-9]+)*")


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    labels: tuple[str, ...] = Field(min_length=2)
    text: str = "a text"
    prompts: tuple[str, ...] = ()
    name: str | None = None
    metric: str = ""


def load_task_folder(folder: Path) -> Task:
    """Read a task folder; TaskError names the file and line of what is wrong, and of several faults each."""
    if is_image_folder(folder):
        return _load_style(folder)
    header = _read_header(folder)
    faults = [f"{_shown(folder / HEADER)}: {fault}" for fault in _header_faults(header)]
    name = task_name(folder, header.name)
    splits: dict[Split, tuple[Example, ...]] = {}
    first: dict[str, tuple[Split, str]] = {}  # text, as `same_text` has it -> the split and the line that have it
    for split in get_args(Split):
        try:
            lines = list(_read_lines(folder / f"{split}.jsonl", header.labels))
        except TaskError as error:
            faults.append(str(error))
            continue
        splits[split] = tuple(example for _, example in lines if isinstance(example, Example))
        for where, result in lines:
            if isinstance(result, str):
                faults.append(f"{where}: {result}")
            elif (known := first.setdefault(same_text(result.text), (split, where)))[0] != split:
                faults.append(
                    f"{where}: the text {result.text[:60]!r} is in {known[1]} too; a leaked split makes every score "
                    "worthless, remove one of them"
                )
    if faults:
        more = [f"and {len(faults) - NUM_SHOWN} more"] if len(faults) > NUM_SHOWN else []
        raise TaskError("; ".join(faults[:NUM_SHOWN] + more))
    wordings, held_out = paraphrases(header.text, header.labels)
    prompts = tuple(dict.fromkeys((*header.prompts, *wordings)))
    try:
        task = Task(
            id=name, labels=header.labels, prompts=prompts, held_out_prompts=held_out, metric=header.metric, **splits
        )
    except ValidationError as error:
        reasons = [str(item["msg"]).removeprefix("Value error, ") for item in error.errors()]
        raise TaskError(f"task folder {_shown(folder)!r}: {'; '.join(reasons)}") from None
    _warn(task)
    return task


def _load_style(folder: Path) -> Task:
    text = _decoded(_read(folder / HEADER), folder / HEADER)
    name = task_name(folder, read_style_header(text, _shown(folder / HEADER)).name)
    try:
        return load_image_folder(folder, text, name)
    except ValidationError as error:
        reasons = [str(item["msg"]).removeprefix("Value error, ") for item in error.errors()]
        raise TaskError(f"task folder {_shown(folder)!r}: {'; '.join(reasons)}") from None


def task_name(folder: Path, name: str | None = None) -> str:
    """The id of a task, `folder/<name>`: in small letters, digits and '-', which every file system and engine takes.

    The name is that of the folder as it was spelled (links are not followed): accents are dropped, everything else that
    does not fit becomes '-'. TaskError where letters would be lost, nothing is left, or a `name` of its own does not fit.
    """
    if name is not None:
        if not _NAME.fullmatch(name):
            raise TaskError(
                f"task folder {_shown(folder)!r}: name {name!r} in {HEADER} must be small letters a to z, digits and "
                f"single '-' between them, at most {MAX_NAME_CHARS} characters"
            )
        return f"{SOURCE}/{name}"
    spelled = Path(*_normal_parts(folder)).name
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", spelled).lower())
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    made = re.sub("[^a-z0-9]+", "-", plain).strip("-")
    lost = [char for char in plain if ord(char) > 127 and (char.isalnum() or "\ud800" <= char <= "\udfff")]
    if lost or not _NAME.fullmatch(made):
        raise TaskError(
            f"task folder {_shown(folder)!r} has a name that cannot be an adapter's: at most {MAX_NAME_CHARS} letters "
            f'a to z and digits; rename it, or set name = "..." in its {HEADER}'
        )
    return f"{SOURCE}/{made}"


def _normal_parts(folder: Path) -> list[str]:
    """The parts of the absolute path without `.` and `..`."""
    parts: list[str] = []
    for part in folder.absolute().parts:
        parts = parts[:-1] if part == ".." and len(parts) > 1 else [*parts, part]
    return parts


def _read_header(folder: Path) -> _Header:
    path = folder / HEADER
    try:
        return _Header.model_validate(tomllib.loads(_decoded(_read(path), path)))
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{_shown(path)} is not valid TOML: {error}") from None
    except RecursionError:
        raise TaskError(f"{_shown(path)} is not valid TOML: nested too deeply") from None
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise TaskError(
            f"{_shown(path)}: {'; '.join(reasons)} (its keys are {', '.join(_Header.model_fields)})"
        ) from None


def _header_faults(header: _Header) -> Iterator[str]:
    for label in dict.fromkeys(header.labels):
        if label != label.strip() or not label:
            yield f"label {label!r} is empty or has spaces around it; spell it without"
        if header.labels.count(label) > 1:
            yield f"label {label!r} stands twice; name each one once"
    for prompt in header.prompts:
        if not prompt.strip():
            yield f"prompt {prompt!r} is empty; describe the task in a sentence, or leave it out"
    if not header.text.strip():
        yield f"text {header.text!r} is empty; say what an input is, such as 'a customer mail'"


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise TaskError(f"{_shown(path)} is no file (a folder, a pipe, a device); put the file itself there")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise TaskError(f"task folder {_shown(path.parent)!r} has no {path.name}") from None
    except OSError as error:
        raise TaskError(f"{_shown(path)} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, path: Path) -> str:
    """UTF-8 text without a byte order mark."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TaskError(f"{_shown(path)} is UTF-16; save it as utf-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise TaskError(
            f"{_shown(path)}:{number}: the byte 0x{data[error.start]:02x} is no utf-8; save the file as utf-8"
        ) from None


def _read_lines(path: Path, labels: tuple[str, ...]) -> Iterator[tuple[str, Example | str]]:
    """Each line as (where, example), or what is wrong with it in the example's place."""
    # str.splitlines would split at other line separators, which a text may hold.
    lines = _decoded(_read(path), path).removesuffix("\n").split("\n")
    if lines == [""]:
        yield _shown(path), "has no examples; put some there, each split needs its own"
        return
    for number, line in enumerate(lines, 1):
        yield f"{_shown(path)}:{number}", _example(line, labels)


def _example(line: str, labels: tuple[str, ...]) -> Example | str:
    """The example of a line, or what is wrong with it."""
    malformed = "not {'text': ..., 'label': ...}: "
    if len(line) > MAX_LINE_CHARS:
        return f"has {len(line):,} characters, at most {MAX_LINE_CHARS:,} are read; shorten the text, or split it"
    if not line.strip():
        return malformed + "the line is empty; remove it"
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
    except RecursionError:
        return malformed + "nested too deeply"
    except ValueError as error:
        return malformed + f"no JSON ({error})"
    if not isinstance(pairs, _Pairs):
        return malformed + f"it is {line.strip()[:60]!r}"
    if sorted(key for key, _ in pairs) != ["label", "text"]:
        return malformed + f"its keys are {', '.join(repr(key) for key, _ in pairs) or 'none'}"
    for key, value in pairs:
        if not isinstance(value, str):
            return malformed + f"{key!r} is no string (put it in quotes)"
        if any("\ud800" <= char <= "\udfff" for char in key + value):
            return malformed + f"{key!r} holds half a character ({ascii(value)[:60]}), which is no Unicode text"
        if not value.strip():
            return malformed + f"{key!r} is empty; remove the line"
    example = Example(**dict(pairs))
    return example if example.label in labels else f"label {example.label!r} is none of {labels}"


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as they stand, so that one that stands twice is seen."""


def _warn(task: Task) -> None:
    if missing := [label for label in task.labels if label not in {example.label for example in task.train}]:
        logger.warning("task %s: no training example has the label %s", task.id, ", ".join(map(repr, missing)))


def _shown(path: Path) -> str:
    """A path that can be printed and logged, whatever bytes are in it."""
    return str(path).encode("utf-8", "backslashreplace").decode()
