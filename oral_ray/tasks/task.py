"""What a task is: prompts in many wordings, labels, and examples in three splits fixed by a hash of the text.

    task = Task(id="toy", labels=("cat", "dog"), prompts=("Is it a cat or a dog?",), held_out_prompts=(), ...)
    for example in task.examples("validation"):
        ...

Only `examples` gives access to a split, so a caller that must not read test data is easy to check.
"""

import hashlib
import json
import unicodedata
from typing import Literal

from pydantic import Field, model_validator

from oral_ray.errors import TaskError
from oral_ray.local.record import Record

Split = Literal["train", "validation", "test"]
ANSWER = "\nAnswer:"  # what a causal language model reads after a text, before it answers
NUM_SHOTS = 4


class ImageRef(Record):
    """An image of an example by its content: the SHA-256 of the file's bytes, and where the file lies on this machine.

    Where it lies is no part of what it is: neither stored nor in a fingerprint.
    """

    digest: str = Field(pattern="^[0-9a-f]{64}$")
    path: str = Field(default="", exclude=True)


class Example(Record):
    """One input text and its label: one of the task's labels, or the answer of a free-text task.

    Of a task with images the text is the caption, the image what is to be drawn for it, and the label is empty.
    """

    text: str
    label: str
    image: ImageRef | None = Field(default=None, exclude_if=lambda image: image is None)


class Task(Record):
    """Choose one of `labels`, or, where there are none, write the answer (scored by exact match).

    `prompts` are used in training, `held_out_prompts` never are; `prompts[0]` is the default. `metric` is the name of the
    metric that it is scored by; empty: the one that a base's kind takes for its answers.
    """

    id: str
    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    held_out_prompts: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str = Field(default="", exclude_if=lambda name: not name)

    @model_validator(mode="after")
    def _check(self) -> "Task":
        if len(set(self.labels)) == 1:
            raise ValueError(f"task {self.id!r} needs at least two different labels (or none), got {self.labels}")
        if not self.prompts:
            raise ValueError(f"task {self.id!r} has no prompt")
        if both := sorted(set(self.prompts) & set(self.held_out_prompts)):
            raise ValueError(f"task {self.id!r}: {both[0]!r} is both a training prompt and held out; reword it")
        texts: dict[str, str] = {}
        for split in ("train", "validation", "test"):
            for example in getattr(self, split):
                if self.labels and example.label not in self.labels:
                    raise ValueError(f"task {self.id!r}: label {example.label!r} is none of {self.labels}")
                if not example.label.strip() and example.image is None:
                    raise ValueError(f"task {self.id!r}: the answer of {example.text[:60]!r} is empty; remove it")
                text = same_text(example.text)
                if texts.setdefault(text, split) != split:
                    raise ValueError(
                        f"task {self.id!r}: the text {example.text[:60]!r} is in the splits {texts[text]} and "
                        f"{split}; a leaked split makes every score worthless, remove one of them"
                    )
        return self

    @property
    def images(self) -> dict[str, ImageRef]:
        """Every image of the task by its digest; empty for a task of texts."""
        examples = (*self.train, *self.validation, *self.test)
        return {example.image.digest: example.image for example in examples if example.image is not None}

    @property
    def prompt(self) -> str:
        """The default wording."""
        return self.prompts[0]

    def examples(self, split: Split) -> tuple[Example, ...]:
        """The examples of one split; TaskError when it is empty."""
        found: tuple[Example, ...] = getattr(self, split)
        if not found:
            raise TaskError(f"task {self.id!r} has no {split} examples; add some or choose another task")
        return found

    @property
    def fingerprint(self) -> str:
        """32 hex digits over everything in the task: other data or prompts, another task."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def same_text(text: str) -> str:
    """What two texts have in common that read the same: Unicode's composed form (NFC), without blanks around it."""
    return unicodedata.normalize("NFC", text).strip()


def split_of(text: str) -> Split:
    """The split of a text: 60% train, 15% validation, 25% test, by the hash of the text alone."""
    bucket = int.from_bytes(hashlib.sha256(f"split/{text}".encode()).digest()[:8], "big") % 100
    return "train" if bucket < 60 else "validation" if bucket < 75 else "test"


def balanced_order(examples: list[Example]) -> tuple[Example, ...]:
    """Examples in an order fixed by the hash of their texts, so that a prefix is a fair sample."""
    return tuple(sorted(examples, key=lambda example: hashlib.sha256(f"order/{example.text}".encode()).digest()))


def shuffled(task: Task) -> Task:
    """The task with its training answers in an order fixed by a hash: what is learnt from it is form, not content."""
    answers = sorted(task.train, key=lambda e: hashlib.sha256(f"deal/{e.text}".encode()).digest())
    train = tuple(
        Example(text=e.text, label=answer.label, image=answer.image)
        for e, answer in zip(task.train, answers, strict=True)
    )
    return task.model_copy(update={"id": f"shuffled/{task.id}", "train": train})


def instructed(task: Task) -> Task:
    """The task with its default wording before every text: how a model is asked without an adapter."""
    return _framed(task, "instructed", f"{task.prompt}\n")


def few_shot(task: Task) -> Task:
    """The instructed task with `NUM_SHOTS` answered training examples before every text, all labels in turn."""
    if task.images:
        raise TaskError(f"task {task.id!r} is one of images, and no image is shown as an example; leave few-shot/ out")
    left, shots = list(task.train), list[Example]()
    for i in range(min(NUM_SHOTS, len(left))):
        wanted = task.labels[i % len(task.labels)] if task.labels else None
        chosen = next((e for e in left if wanted in (None, e.label)), left[0])
        left.remove(chosen)
        shots.append(chosen)
    return _framed(task, "few-shot", f"{task.prompt}\n" + "".join(f"{e.text}{ANSWER} {e.label}\n\n" for e in shots))


def _framed(task: Task, name: str, before: str) -> Task:
    splits = {
        split: tuple(Example(text=before + e.text, label=e.label, image=e.image) for e in getattr(task, split))
        for split in ("train", "validation", "test")
    }
    return task.model_copy(update={"id": f"{name}/{task.id}", **splits})
