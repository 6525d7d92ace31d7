"""Tasks of your own: a folder with `task.toml` and `train.jsonl`, `validation.jsonl`, `test.jsonl`.

    # task.toml
    labels = ["refund", "delivery"]
    text = "a customer mail"            # what an input is, for the wordings of the prompt
    prompts = ["Route a customer mail to refund or delivery."]    # optional, put before the generated wordings

Each line of a .jsonl file is `{"text": "...", "label": "..."}`.
"""

import json
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oral_ray.errors import TaskError
from oral_ray.tasks.prompts import paraphrases
from oral_ray.tasks.task import Example, Task


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    labels: tuple[str, ...] = Field(min_length=2)
    text: str = "a text"
    prompts: tuple[str, ...] = ()


def load_task_folder(folder: Path) -> Task:
    """Read a task folder; TaskError names the file and line of what is wrong."""
    try:
        header = _Header.model_validate(tomllib.loads((folder / "task.toml").read_text(encoding="utf-8")))
        wordings, held_out = paraphrases(header.text, header.labels)
        return Task(
            id=folder.name,
            labels=header.labels,
            prompts=(*header.prompts, *wordings),
            held_out_prompts=held_out,
            train=_examples(folder / "train.jsonl"),
            validation=_examples(folder / "validation.jsonl"),
            test=_examples(folder / "test.jsonl"),
        )
    except FileNotFoundError as error:
        raise TaskError(f"task folder {str(folder)!r} has no {Path(error.filename).name}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise TaskError(f"task folder {str(folder)!r}: {' '.join(str(error).split())}") from None


def _examples(path: Path) -> tuple[Example, ...]:
    examples = []
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a text may hold other line separators
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            examples.append(Example.model_validate(json.loads(line)))
        except ValueError as error:
            raise TaskError(f"{path}:{number}: not {{'text': ..., 'label': ...}}: {error}") from None
    return tuple(examples)
