"""The training loop: it learns, resumes exactly, saves the EMA, never trains on held-out rows."""

import itertools
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factory_fixtures import layout_of, randn, random_factors, shaken_network, small_spec
from safetensors.torch import load_file, save_file
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenMoments, positions, token_mask, tokenize
from oral_ray.config import FunctionalPhase, MlpDenoiserConfig, SamplingConfig, TrainingConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator.data import CorpusRow, CorpusTables, RowSource, is_held_out, make_batch
from oral_ray.generator.functional import FunctionalItem
from oral_ray.generator.model import build_network
from oral_ray.generator.network import Network
from oral_ray.generator.training import MetricsRow, TrainingLoop, learning_rate_at

SPEC = small_spec(width=32, denoiser=MlpDenoiserConfig(width=64, num_blocks=2))
SHORT = TrainingConfig(
    steps=8, batch_size=4, learning_rate=3e-3, warmup_steps=2, validation_frac=0.0, validate_every=4, checkpoint_every=4
)


def corpus(layouts: list[AdapterLayout], num: int) -> tuple[list[CorpusRow], CorpusTables]:
    """`num` random adapters over the layouts, each with a task and a base of its own."""
    rows, moments = [], TokenMoments()
    for i in range(num):
        layout = layouts[i % len(layouts)]
        tokens = tokenize(random_factors(layout, i), layout).tokens_LD
        moments.add(layout, tokens)
        rows.append(CorpusRow(f"digest-{i}", layout.digest, f"base-{i}", f"task-{i}", tokens))
    tables = CorpusTables(
        layouts={layout.digest: layout for layout in layouts},
        prompts={row.task: randn(2, SPEC.text_dim, seed=i) * 0.1 + randn(SPEC.text_dim, seed=100 + i)
                 for i, row in enumerate(rows)},
        bases={row.base: randn(SPEC.model_dim, seed=200 + i) for i, row in enumerate(rows)},
        stats=moments.finish(),
    )  # fmt: skip
    return rows, tables


@dataclass
class Run:
    """What a training run reported: rows, and copies of the folders by step."""

    folder: Path
    network: Network
    metrics: list[MetricsRow] = field(default_factory=list)

    def report(self, row: MetricsRow, folder: Path | None) -> None:
        self.metrics.append(row)
        if folder is not None:
            shutil.move(folder, self.at(row.step))

    def at(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def saved(self, step: int) -> dict[str, Tensor]:
        return load_file(self.at(step) / "ema.safetensors")


def run(
    folder: Path, rows: list[CorpusRow], tables: CorpusTables, training: TrainingConfig, seed: int = 0,
    resume: Path | None = None, network: Network | None = None, functional_item: Any = None, rank: int = 0,
    num_workers: int = 1,
) -> Run:  # fmt: skip
    made = Run(folder, network or build_network(SPEC, seed))
    TrainingLoop(
        made.network, tables, lambda: iter(rows), training, drop_text_frac=0.1, drop_model_frac=0.1, seed=seed, rank=rank,
        num_workers=num_workers, resume=resume, report=made.report,
        save_network=lambda state, target: save_file(state, target / "ema.safetensors"),
        functional_item=functional_item,
    ).run()  # fmt: skip
    return made


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def small(tiny_bert: Path, tiny_llama: Path) -> tuple[list[CorpusRow], CorpusTables]:
    """Twelve adapters of two layouts of different length."""
    return corpus([layout_of(tiny_bert), layout_of(tiny_llama, 3)], 12)


def test_training_overfits_four_adapters_so_that_sampling_reproduces_them(tiny_bert: Path, tmp_path: Path) -> None:
    layout = layout_of(tiny_bert, r=1)
    rows, tables = corpus([layout], 4)
    training = SHORT.model_copy(
        update={"steps": 500, "learning_rate": 5e-3, "ema_decay": 0.95, "validate_every": 500, "checkpoint_every": 500}
    )
    wide = small_spec(width=64, denoiser=MlpDenoiserConfig(width=128, num_blocks=2))
    done = run(
        tmp_path,
        rows,
        tables,
        training,
        network=build_network(wide, 0),
    )
    done.network.load_state_dict(done.saved(500))
    tokens = torch.stack([tables.stats.normalize(row.tokens_LD, layout) for row in rows])
    rng = torch.Generator().manual_seed(5)
    found = done.network.eval().sample(
        positions(layout).expand(4, -1, -1), token_mask(layout).expand(4, -1, -1),
        torch.stack([tables.prompts[row.task][0] for row in rows]), torch.stack([tables.bases[row.base] for row in rows]),
        lambda: torch.randn(tokens.shape, generator=rng), SamplingConfig(num_steps=10),
    )  # fmt: skip
    errors = (found[:, None] - tokens[None]).flatten(2).norm(dim=2) / tokens.flatten(1).norm(dim=1)
    assert errors.diagonal().max() < 0.35, errors
    assert torch.equal(errors.argmin(1), torch.arange(4))
    assert (errors + 9 * torch.eye(4)).min() > 0.8  # another prompt and base give another adapter


def test_a_resumed_run_is_the_uninterrupted_run_exactly(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", *small, SHORT)
    resumed = run(tmp_path / "resumed", *small, SHORT, resume=whole.at(4), network=build_network(SPEC, 99))
    assert [row.step for row in resumed.metrics] == [8]
    assert same(whole.saved(8), resumed.saved(8)) and not same(whole.saved(4), whole.saved(8))
    assert same(whole.network.state_dict(), resumed.network.state_dict())
    assert resumed.metrics[-1].loss == whole.metrics[-1].loss


def test_a_finished_run_resumes_to_nothing(small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *small, SHORT)
    again = run(tmp_path / "again", *small, SHORT, resume=whole.at(8))
    assert again.metrics == [] and same(again.network.state_dict(), whole.network.state_dict())


def test_same_seed_trains_the_same_weights_and_another_seed_others(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path
) -> None:
    start = build_network(SPEC, 0).state_dict()

    def weights(name: str, seed: int) -> dict[str, Tensor]:
        network = build_network(SPEC, 1)
        network.load_state_dict(start)
        torch.manual_seed(seed + 5)  # the global stream must not matter
        return run(tmp_path / name, *small, SHORT, seed=seed, network=network).saved(8)

    assert same(weights("a", 0), weights("b", 0)) and not same(weights("c", 0), weights("d", 1))


def test_what_is_saved_is_the_moving_average_of_the_weights(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path
) -> None:
    done = run(tmp_path, *small, SHORT.model_copy(update={"checkpoint_every": 1, "ema_decay": 0.5}))
    average = build_network(SPEC, 0).state_dict()
    for step in range(8):
        decay = min(0.5, (1 + step) / (10 + step))
        weights = torch.load(done.at(step + 1) / "trainer.pt", weights_only=True)["weights"]
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
        saved = done.saved(step + 1)
        assert all(torch.allclose(average[name], saved[name], atol=1e-6) for name in average)
    assert not same(saved, weights)


def test_saving_and_validating_change_nothing_in_the_run(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path
) -> None:
    often = SHORT.model_copy(update={"checkpoint_every": 1, "validate_every": 1, "validation_frac": 0.3})
    seldom = often.model_copy(update={"checkpoint_every": 8, "validate_every": 8})
    assert same(run(tmp_path / "a", *small, often).saved(8), run(tmp_path / "b", *small, seldom).saved(8))


def test_held_out_rows_are_validated_on_and_never_trained_on(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path
) -> None:
    rows, tables = small
    held_out = [is_held_out(row.digest, 0.3) for row in rows]
    assert 0 < sum(held_out) < 8
    spoilt = [
        replace(row, tokens_LD=row.tokens_LD * 30) if out else row for row, out in zip(rows, held_out, strict=True)
    ]
    training = SHORT.model_copy(update={"validation_frac": 0.3})
    clean, other = (run(tmp_path / str(i), given, tables, training) for i, given in enumerate((rows, spoilt)))
    assert same(clean.saved(8), other.saved(8))
    assert [row.loss for row in clean.metrics] == [row.loss for row in other.metrics]
    assert clean.metrics[0].validation_loss != other.metrics[0].validation_loss
    trained = [replace(row, tokens_LD=row.tokens_LD * 30) for row in rows]
    assert not same(clean.saved(8), run(tmp_path / "2", trained, tables, training).saved(8))


def test_no_held_out_rows_is_no_validation_loss(small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path) -> None:
    assert [row.validation_loss for row in run(tmp_path, *small, SHORT).metrics] == [None, None]


def test_metrics_come_at_their_steps_with_the_rate_that_was_used(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path
) -> None:
    training = SHORT.model_copy(update={"validate_every": 3, "checkpoint_every": 100})
    done = run(tmp_path, *small, training)
    assert [row.step for row in done.metrics] == [3, 6, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["step-8"]
    assert all(row.learning_rate == learning_rate_at(row.step - 1, training) for row in done.metrics)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(
    small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path, value: float
) -> None:
    rows, tables = small
    rows = [replace(row, tokens_LD=row.tokens_LD * value) for row in rows]
    with pytest.raises(GeneratorError, match=r"loss is (nan|inf) at step 4; lower training.learning_rate"):
        run(tmp_path, rows, tables, SHORT)
    assert not list(tmp_path.iterdir())


def test_an_empty_corpus_is_refused(small: tuple[list[CorpusRow], CorpusTables], tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="corpus share of this worker is empty"):
        run(tmp_path, [], small[1], SHORT)


def test_batches_that_do_not_divide_over_workers_are_refused(small: tuple[list[CorpusRow], CorpusTables]) -> None:
    with pytest.raises(GeneratorError, match=r"batch_size=4 is not divisible by training.num_workers=3"):
        TrainingLoop(
            build_network(SPEC, 0), small[1], lambda: small[0], SHORT, drop_text_frac=0.0, drop_model_frac=0.0, seed=0,
            rank=0, num_workers=3, resume=None, report=lambda *_: None, save_network=lambda *_: None,
        ).run()  # fmt: skip


def test_learning_rate_rises_falls_and_does_so_again_in_the_second_phase() -> None:
    training = TrainingConfig(
        steps=100, warmup_steps=10, learning_rate=1.0, functional=FunctionalPhase(steps=50, learning_rate=0.1)
    )
    rates = [learning_rate_at(step, training) for step in range(150)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[99] < 1e-3
    assert rates[9:100] == sorted(rates[9:100], reverse=True)
    assert rates[100:110] == pytest.approx([0.01 * i for i in range(1, 11)])
    assert rates[110] == pytest.approx(0.1) and rates[130] == pytest.approx(0.05) and 0 < rates[149] < 1e-3
    assert learning_rate_at(0, training.model_copy(update={"warmup_steps": 0})) == 1.0


def test_functional_phase_starts_after_the_corpus_phase_with_a_seed_a_step(
    small: tuple[list[CorpusRow], CorpusTables], tiny_bert: Path, tmp_path: Path
) -> None:
    layout, seeds, bases = layout_of(tiny_bert), [], []

    def item(seed: int, base_seed: int | None) -> FunctionalItem:
        seeds.append(seed)
        bases.append(base_seed)
        rng = torch.Generator().manual_seed(seed)
        return FunctionalItem(
            positions(layout)[None], token_mask(layout)[None], randn(1, SPEC.text_dim), randn(1, SPEC.model_dim),
            torch.randn(1, layout.num_tokens, 24, generator=rng), lambda tokens: (tokens - 3.0).square().mean(),
        )  # fmt: skip

    phase = FunctionalPhase(steps=6, learning_rate=1e-2, diffusion_weight=0.0)
    training = SHORT.model_copy(update={"functional": phase})
    done = run(tmp_path / "whole", *small, training, functional_item=item)
    assert len(seeds) == len(set(seeds)) == 6
    assert [row.step for row in done.metrics] == [4, 8, 12, 14]
    assert done.metrics[3].loss < done.metrics[2].loss  # only the task loss is left, and it falls
    plain = run(tmp_path / "plain", *small, SHORT)
    assert same(plain.saved(8), done.saved(8))
    first, seeds[:] = list(seeds), []
    resumed = run(tmp_path / "resumed", *small, training, resume=done.at(12), functional_item=item)
    assert seeds == first[4:] and same(resumed.saved(14), done.saved(14))
    assert set(bases) == {None}
    bases.clear()
    shared = training.model_copy(update={"functional": phase.model_copy(update={"steps_per_base": 4})})
    run(tmp_path / "shared", *small, shared, functional_item=item)
    assert len(set(bases[:4])) == len(set(bases[4:])) == 1 and bases[0] != bases[4] and len(bases) == 6


def test_diffusion_loss_stays_in_the_functional_phase_with_its_weight(
    small: tuple[list[CorpusRow], CorpusTables], tiny_bert: Path
) -> None:
    layout, (rows, tables) = layout_of(tiny_bert), small
    network = shaken_network(SPEC)
    item = FunctionalItem(
        positions(layout)[None], token_mask(layout)[None], randn(1, SPEC.text_dim), randn(1, SPEC.model_dim),
        randn(1, layout.num_tokens, 24), lambda tokens: tokens.square().mean(),
    )  # fmt: skip
    inputs = make_batch(rows[:3], tables, 0.0, 0.0, 1.0, 0)
    with torch.no_grad():
        corpus_loss, task_loss = float(network(inputs)), float(item.task_loss(network.one_step(item)))
        assert float(network(inputs, functional=item, diffusion_weight=0.3)) == pytest.approx(
            task_loss + 0.3 * corpus_loss, rel=1e-6
        )


def order(source: RowSource, num: int, seed: int = 0, first: int = 0) -> list[list[str]]:
    return [[row.digest for row in batch] for batch in itertools.islice(source.batches(4, seed, first), num)]


@pytest.mark.parametrize("cache_bytes", [10**9, 20_000])
def test_every_epoch_shows_every_row_once_and_any_step_can_be_the_first(
    small: tuple[list[CorpusRow], CorpusTables], cache_bytes: int
) -> None:
    rows, _ = small
    source = RowSource(lambda: iter(rows), SHORT.model_copy(update={"cache_bytes": cache_bytes}))
    batches = order(source, 9)
    epochs = [list(itertools.chain(*batches[start : start + 3])) for start in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(row.digest for row in rows) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert all(order(source, 9 - first, first=first) == batches[first:] for first in (1, 4, 8))
    assert order(source, 9, seed=1) != batches


def test_order_of_the_corpus_changes_no_batch_of_what_fits_in_memory(
    small: tuple[list[CorpusRow], CorpusTables],
) -> None:
    rows, _ = small
    assert order(RowSource(lambda: rows, SHORT), 5) == order(RowSource(lambda: rows[::-1], SHORT), 5)


def test_a_batch_is_padded_normalised_and_drawn_from_its_seed(small: tuple[list[CorpusRow], CorpusTables]) -> None:
    rows, tables = small
    batch = make_batch(rows[:2], tables, 0.0, 1.0, 4.0, 7)
    first, second = (tables.layouts[row.layout] for row in rows[:2])
    assert first.num_tokens < second.num_tokens == batch.x0_BLD.shape[1]
    assert not batch.x0_BLD[~batch.mask_BLD].any() and not batch.mask_BLD[0, first.num_tokens :].any()
    assert int(batch.mask_BLD.sum()) == first.num_parameters + second.num_parameters
    wanted = tables.stats.normalize(rows[0].tokens_LD, first) * token_mask(first)
    assert torch.equal(batch.x0_BLD[0, : first.num_tokens], wanted)
    assert batch.use_text_B.all() and not batch.use_model_B.any()
    again, other = make_batch(rows[:2], tables, 0.0, 1.0, 4.0, 7), make_batch(rows[:2], tables, 0.0, 1.0, 4.0, 8)
    assert torch.equal(batch.noise_BLD, again.noise_BLD) and not torch.equal(batch.noise_BLD, other.noise_BLD)
    wordings = {tuple(make_batch(rows[:1], tables, 0.0, 0.0, 4.0, s).text_BE[0].tolist()) for s in range(20)}
    assert wordings == {tuple(row.tolist()) for row in tables.prompts[rows[0].task]}
