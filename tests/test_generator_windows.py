"""Windows of an adapter, batches in parts, activations computed again: less memory, the same loss."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from factory_fixtures import layout_of, shaken_network
from test_generator_training import SHORT, SPEC, corpus, run, same

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.config import TrainingConfig, build_config
from oral_ray.errors import ConfigError
from oral_ray.generator.data import Batch, CorpusRow, CorpusTables, make_batch
from oral_ray.generator.engines import recompute_blocks
from oral_ray.generator.model import build_network

CPU = torch.device("cpu")
Small = tuple[list[CorpusRow], CorpusTables]


@pytest.fixture
def small(tiny_bert: Path, tiny_llama: Path) -> Small:
    return corpus([layout_of(tiny_bert), layout_of(tiny_llama, 3)], 12)


def batch_of(row: CorpusRow, tables: CorpusTables, seed: int, window_tokens: int | None) -> Batch:
    """Without noise from the seed, so that batches of different windows can be compared."""
    made = make_batch([row], tables, 0.0, 0.0, 1.0, seed, window_tokens)
    made.noise_BLD.zero_()
    made.time_B.fill_(0.5)
    made.text_BE.copy_(tables.prompts[row.task][:1])
    return made


def windows_of(row: CorpusRow, tables: CorpusTables, window_tokens: int, draws: int) -> list[Batch]:
    return [batch_of(row, tables, seed, window_tokens) for seed in range(draws)]


def test_the_windows_of_an_adapter_weighted_by_their_values_have_the_loss_of_the_whole(small: Small) -> None:
    rows, tables = small
    network, row = shaken_network(SPEC), rows[1]
    with torch.no_grad():
        whole = batch_of(row, tables, 0, None)
        total = 0.0
        for made in {int(b.num_before_B): b for b in windows_of(row, tables, 7, 200)}.values():
            total += float(network(made.to(CPU))) * int(made.mask_BLD.sum())
        assert total / int(whole.mask_BLD.sum()) == pytest.approx(float(network(whole.to(CPU))), rel=1e-5)


def test_a_window_is_drawn_in_proportion_to_the_values_in_it(small: Small) -> None:
    rows, tables = small
    row, layout = rows[1], tables.layouts[rows[1].layout]
    seen = windows_of(row, tables, 50, 600)
    counts = Counter(int(made.num_before_B) for made in seen)
    assert set(counts) == set(range(-(-layout.num_tokens // 50)))
    values = {int(made.num_before_B): int(made.mask_BLD.sum()) for made in seen}
    for window, count in counts.items():
        assert count / 600 == pytest.approx(values[window] / sum(values.values()), abs=0.06)


def test_no_batch_holds_more_tokens_than_a_window(small: Small) -> None:
    rows, tables = small
    longest = max(layout.num_tokens for layout in tables.layouts.values())
    made = make_batch(rows[:4], tables, 0.0, 0.0, 1.0, 3, 16)
    assert made.x0_BLD.shape[1] == made.noise_BLD.shape[1] == made.position_BLP.shape[1] == 16 < longest
    assert made.before_BNWP.shape[2] == 16


def test_prototypes_of_a_window_are_those_of_the_whole_adapter_and_no_gradient_leaves_it(small: Small) -> None:
    rows, tables = small
    network = shaken_network(SPEC)
    made = make_batch(rows[:4], tables, 0.0, 0.0, 1.0, 5, 16)
    whole = make_batch(rows[:4], tables, 0.0, 0.0, 1.0, 5)
    assert len(set(made.num_before_B.tolist())) > 1  # adapters at different places in one batch
    condition = made.text_BE, made.model_BG, made.use_text_B, made.use_model_B
    states = network.states_before(made.before_BNWP, made.num_before_B, *condition)
    assert not any(state.ssd.requires_grad or state.conv.requires_grad for state in states if state)
    with torch.no_grad():
        inside, _ = network.prototypes(made.position_BLP, *condition, states)
        across, _ = network.prototypes(whole.position_BLP, *condition)
    for i, start in enumerate((made.num_before_B * 16).tolist()):
        length = int(made.mask_BLD[i].any(1).sum())
        assert torch.allclose(inside[i, :length], across[i, start : start + length], atol=1e-5)


def test_a_window_as_long_as_the_longest_adapter_is_today_s_training(small: Small, tmp_path: Path) -> None:
    longest = max(layout.num_tokens for layout in small[1].layouts.values())
    whole = run(tmp_path / "whole", *small, SHORT)
    full, cut = (
        run(tmp_path / str(size), *small, SHORT.model_copy(update={"window_tokens": size})) for size in (longest, 16)
    )
    assert [row.loss for row in full.metrics] == [row.loss for row in whole.metrics]
    assert same(full.saved(8), whole.saved(8)) and not same(cut.saved(8), whole.saved(8))


def test_training_on_windows_learns_and_resumes_exactly(tiny_bert: Path, tmp_path: Path) -> None:
    rows, tables = corpus([layout_of(tiny_bert)], 2)
    training = SHORT.model_copy(
        update={"steps": 60, "window_tokens": 16, "learning_rate": 1e-2, "validate_every": 20, "checkpoint_every": 20}
    )
    done = run(tmp_path / "whole", rows, tables, training)
    assert done.metrics[-1].loss < 0.9 * done.metrics[0].loss
    again = run(tmp_path / "again", rows, tables, training, resume=done.at(40), network=build_network(SPEC, 9))
    assert same(again.saved(60), done.saved(60))


def test_a_batch_in_parts_has_the_loss_curve_of_the_whole_batch(small: Small, tmp_path: Path) -> None:
    often = SHORT.model_copy(update={"validate_every": 1})
    whole = run(tmp_path / "1", *small, often)
    for parts in (2, 4):
        cut = run(tmp_path / str(parts), *small, often.model_copy(update={"accumulation": parts}))
        assert [row.loss for row in cut.metrics] == pytest.approx([row.loss for row in whole.metrics], rel=1e-4)
    smaller = run(tmp_path / "smaller", *small, often.model_copy(update={"batch_size": 2}))
    assert [row.loss for row in smaller.metrics] != pytest.approx([row.loss for row in whole.metrics], rel=1e-2)


def test_activations_computed_again_give_the_same_gradients_from_fewer_kept_ones(small: Small) -> None:
    rows, tables = small
    inputs = make_batch(rows[:4], tables, 0.0, 0.0, 1.0, 5)
    gradients, kept = [], []
    for again in (False, True):
        network = shaken_network(SPEC)
        if again:
            recompute_blocks(network)
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(inputs)
        loss.backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
        kept.append(sum(sizes))
        assert network.state_dict().keys() == build_network(SPEC, 0).state_dict().keys()
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"batch_size": 6, "accumulation": 4}, "batch_size=6 is not divisible by num_workers=1 x accumulation=4"),
        ({"batch_size": 8, "num_workers": 4, "min_workers": 2}, "not divisible by num_workers=3"),
        ({"num_workers": 2, "min_workers": 3}, "min_workers=3 is above num_workers=2"),
        (
            {"window_tokens": 8, "engine": {"kind": "deepspeed", "zero_stage": 3}},
            "zero_stage=3 cannot do; use zero_stage=2",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_together_are_refused(training: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config({"training": training})
    assert isinstance(TrainingConfig(batch_size=8, num_workers=4, min_workers=4), TrainingConfig)


def test_a_window_of_a_long_adapter_costs_the_memory_of_a_window(tiny_llama: Path) -> None:
    """An adapter 8 times as long makes no larger batch, but for the positions of what comes before."""
    layouts: list[AdapterLayout] = [layout_of(tiny_llama, r) for r in (1, 8)]
    sizes = []
    for layout in layouts:
        rows, tables = corpus([layout], 1)
        made = make_batch(rows, tables, 0.0, 0.0, 1.0, 1, 7)
        sizes.append(made.x0_BLD.nbytes + made.mask_BLD.nbytes + made.noise_BLD.nbytes + made.position_BLP.nbytes)
    assert layouts[1].num_tokens == 8 * layouts[0].num_tokens and sizes[0] == sizes[1]
