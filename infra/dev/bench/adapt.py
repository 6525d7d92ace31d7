"""To train an adapter, or to generate it: seconds of both for one base, kind of adapter and generator, in one run.

Settings are those of `config`: LoRA, training steps and batch, number format, generator, sampling steps. Training is
`adapters.lora.train_adapter` and leaves out loading the base and reading examples, once as it comes and once where what
lies below the first adapted layer has been computed for all examples before (`corpus.num_examples`). Generating is
`AdapterFactory.generate`, from the prompt to the artifact with its digest. Its weights are random: its time does
not depend on them.

    python infra/dev/bench adapt base=oral-store-smollm2/bases/smollm2-t0 --json out/bench/adapt.json
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import PositiveInt

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import train_adapter
from oral_ray.bases.loading import open_base
from oral_ray.bench.generate import random_factory
from oral_ray.bench.harness import BenchOptions, Result, Row, compare, spread, timed
from oral_ray.config import ImportOrigin, load_config
from oral_ray.errors import ConfigError
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.pipeline.corpus import training_task
from oral_ray.pipeline.run import open_run


class Options(BenchOptions):
    """`base` is any source of a base model, that of `config` where it is empty; training is run `trainings` times."""

    base: str = ""
    config: str = "smollm2"
    task: str = "wordnet/matter"
    batch: PositiveInt = 32
    trainings: PositiveInt = 1


def run(options: Options) -> Result:
    """Rows for training, for a single generated adapter, for one of a batch, for training on kept states; `ratio` is the
    first's time over theirs."""
    config = load_config(options.config)
    task = training_task(open_run(config), options.task)
    origin = config.bases.versions[0].origin
    if not options.base and not isinstance(origin, ImportOrigin):
        raise ConfigError(f"the first version of {options.config} is not imported; say base=FOLDER")
    base = open_base(options.base or origin.source, config.bases.dtype)  # type: ignore[union-attr]
    layout = AdapterLayout.of(base.record.spec, config.lora, config.tokens.token_dim)
    once = config.corpus.model_copy(update={"keep_last": 1})
    short = once.model_copy(update={"steps": 1})

    def trained(keep: Path | None) -> Row:
        train_adapter([base], task, layout, short, 0, keep=keep)  # warm-up; the second way computes what it keeps
        return spread(
            [timed(lambda: train_adapter([base], task, layout, once, 0, keep=keep)) for _ in range(options.trainings)]
        )

    with tempfile.TemporaryDirectory(prefix="oral-bench-") as name:
        plain, on_kept = trained(None), trained(Path(name))
    encoder = ConditionEncoder(config.condition)
    factory = random_factory(config.generator, encoder, config.tokens.token_dim, config.sampling, "cpu")
    prompts = [task.prompts[i % len(task.prompts)] for i in range(options.batch)]
    conditions = [Condition(prompt, base.record, config.lora, seed) for seed, prompt in enumerate(prompts)]
    generated = compare(
        {
            "generate one": lambda: _made(factory, conditions[:1]),
            f"generate {options.batch} together": lambda: _made(factory, conditions),
        },
        options.repetitions,
    )
    about = f"train, {once.steps} steps of {once.batch_size}, {config.bases.dtype}"
    rows: list[Row] = [{"what": about, **plain, "adapters": 1}]
    rows += [row | {"adapters": num} for row, num in zip(generated, (1, options.batch), strict=True)]
    rows.append({"what": "train, states below kept", **on_kept, "adapters": 1})
    seconds = float(plain["seconds"] or 0)
    return Result(rows=tuple(_each(row, seconds, layout) for row in rows))


def _made(factory: AdapterFactory, conditions: Sequence[Condition]) -> list[AdapterArtifact]:
    return [adapter.artifact() for adapter in factory.generate(conditions)]


def _each(row: Row, train_s: float, layout: AdapterLayout) -> Row:
    each_s = float(row["seconds"] or 0) / int(row["adapters"] or 1)
    return row | {"each_s": each_s, "ratio": train_s / each_s, "parameters": layout.num_parameters}
