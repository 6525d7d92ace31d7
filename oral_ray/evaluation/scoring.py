"""How good an adapter is: one value per example, and what a metric says that the values of a task are.

An arm is a way to get an adapter (arms/ has one file for each); a score is one arm on one base and task.

    [with_adapter, bare] = example_values(base, task, [artifact, None], "test", 1000)
    metric = metric_of(base, task)
    metric.figure(np.array(with_adapter))
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.intake import take
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import attached
from oral_ray.bases.loading import LoadedBase
from oral_ray.bases.states import PrefixStates
from oral_ray.config import Record
from oral_ray.errors import EvaluationError
from oral_ray.modalities import Batch, Metric, TaskReader, Values, batches, modality_of
from oral_ray.tasks import Split, Task


class Score(Record):
    """One arm on one base and task: the figure of n examples by a metric (its name), over all of them.

    `digest` is empty where there is no adapter.
    """

    base: str
    base_seen: bool
    task: str
    arm: str
    seed: int
    metric: str
    value: float
    n: int
    digest: str


def metric_of(base: LoadedBase, task: Task) -> Metric:
    """What the values of a task's examples are on a base, and how they become one figure.

    EvaluationError where the base's modality does not name the metric: a table could not find it again.
    """
    modality, metric = modality_of(base.record.spec.kind), base.reader(task.labels).metric
    if metric not in modality.metrics:
        raise EvaluationError(
            f"task {task.id!r} has the metric {metric.name!r}, which the modality {modality.name!r} does not name in its "
            "`metrics`; add it there, tables find a metric by its name"
        )
    return metric


@torch.no_grad()
def example_values(
    base: LoadedBase, task: Task, artifacts: Sequence[AdapterArtifact | None], split: Split, limit: int,
    keep: Path | None = None,
) -> list[Values]:  # fmt: skip
    """For each adapter, the value of each of the first `limit` examples of a split; `metric_of` says what they are.

    Without one (None): zero-shot, each label's log-probability minus the log of its mean probability over the
    validation inputs (no labels read), so that a label the base always likes gains nothing. Free text is not calibrated.
    What lies below the first adapted layer is kept in the folder `keep`, where there is one.
    """
    examples = task.examples(split)[:limit]
    reader = base.reader(task.labels)
    read = {0: list(batches(reader, examples))}  # by first layer: what lies below it has been computed
    found = []
    for artifact in artifacts:
        if artifact is None:
            prior = reader.prior(base.model, (batch for _, batch in batches(reader, task.examples("validation"))))
            deepest = read[max(read)]  # the layers below are the same without an adapter
            found.append(_values(base.model, reader, deepest, len(examples), prior))
            continue
        artifact = take(base, artifact)
        first = AdapterLayout.of(base.record.spec, artifact.lora, base.record.spec.hidden_size).first_layer
        if first not in read:
            if keep:
                texts = (task.fingerprint, split, limit)
                states = PrefixStates(base, reader, examples, first, keep, base.record.fingerprint, texts)
                read[first] = [(chosen, states(chosen)) for chosen, _ in read[0]]
            else:
                read[first] = [(chosen, reader.skip_layers(base.model, batch, first)) for chosen, batch in read[0]]
        with attached(base, artifact) as model:
            found.append(_values(model, reader, read[first], len(examples)))
    return found


def _values(
    model: nn.Module, reader: TaskReader, read: Sequence[tuple[list[int], Batch]], num: int,
    prior: torch.Tensor | None = None,
) -> Values:  # fmt: skip
    """The value of each example, in the order of the examples and not of the batches."""
    values: list[Any] = [None] * num
    for chosen, batch in read:
        for i, value in zip(chosen, reader.values(model, batch, prior), strict=True):
            values[i] = value
    return values


def majority_values(metric: Metric, task: Task, split: Split, limit: int) -> Values:
    """The `majority` arm: always the most frequent label of the training examples (ties: the first).

    Nothing where the metric does not count right answers: there is no most frequent image.
    """
    if not metric.counts_right_answers:
        return []
    counts = Counter(example.label for example in task.examples("train"))
    most = max(task.labels or counts, key=lambda label: counts[label])
    return [float(example.label == most) for example in task.examples(split)[:limit]]
