"""250 definitions through MiniLM-L6 (extra `quickstart`), in batches of several sizes, texts sorted by length."""

from collections.abc import Callable

import torch

from oral_ray.bases.loading import open_base
from oral_ray.bench.harness import BenchOptions, Result, compare
from oral_ray.config import ConditionConfig
from oral_ray.modalities import batches
from oral_ray.tasks import load_task


class Options(BenchOptions):
    """The common ones."""


def run(options: Options) -> Result:
    """Rows by batch size; 16 first."""
    base, task = open_base(ConditionConfig().text_encoder), load_task("wordnet/matter")
    examples = task.examples("test")[:250]
    reader = base.reader(task.labels)

    def score(batch_size: int) -> Callable[[], object]:
        read = [batch for _, batch in batches(reader, examples, batch_size)]
        return torch.inference_mode()(lambda: [reader.values(base.model, batch) for batch in read])

    candidates = {f"score 250 texts, batches of {size}": score(size) for size in (16, 8, 32, 64)}
    return Result(rows=compare(candidates, options.repetitions))
