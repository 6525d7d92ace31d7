"""Whether bases can tell the answers of a task apart, asked before anything is trained."""

from collections.abc import Iterable, Sequence
from typing import Any

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.tokenizer import check_labels, load_tokenizer
from oral_ray.errors import TaskError
from oral_ray.pipeline.run import Run


def check_answers(run: Run, asked: Iterable[tuple[Sequence[str], Sequence[BaseRecord]]]) -> None:
    """TaskError where a base of a training cannot tell the labels of a task of one's own apart.

    `asked` are the tasks and bases of trainings; every tokenizer is loaded once.
    """
    tokenizers: dict[str, Any] = {}
    for task_ids, bases in asked:
        for task_id in filter(run.tasks.is_own, task_ids):
            for base in bases:
                if base.fingerprint not in tokenizers:
                    tokenizers[base.fingerprint] = load_tokenizer(base)
                try:
                    check_labels(base, tokenizers[base.fingerprint], run.task(task_id).labels)
                except TaskError as error:
                    raise TaskError(f"task {task_id!r} on base {base.id!r}: {error}") from None
