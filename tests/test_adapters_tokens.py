"""Weight tokens: exact round trip, honest mask, positions with a meaning, mergeable statistics."""

import math
from pathlib import Path

import pytest
import torch
from factory_fixtures import ALL_ROLES, layout_of, random_factors, stats_of
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import (
    POSITION_DIM,
    TokenMoments,
    TokenStats,
    detokenize,
    positions,
    token_mask,
    tokenize,
)
from oral_ray.errors import LayoutError

TOKEN_DIMS = (1, 7, 16, 32, 100)


@pytest.fixture(params=("tiny_bert", "tiny_llama"))
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.int32).flatten().tolist()


@pytest.mark.parametrize("token_dim", TOKEN_DIMS)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_tokens_give_back_every_bit_of_an_adapter(base: Path, r: int, token_dim: int) -> None:
    layout = layout_of(base, r, ALL_ROLES, token_dim)
    factors = random_factors(layout, seed=r)
    first_a, first_b = factors[layout.slots[0].module]
    first_a[0, 0], first_a[0, 1], first_b[0, 0] = -0.0, 1e-42, float("inf")
    back = detokenize(tokenize(factors, layout).tokens_LD, layout)
    assert back.keys() == factors.keys()
    for module, (a, b) in factors.items():
        assert bits(back[module][0]) == bits(a) and bits(back[module][1]) == bits(b)
        assert back[module][1].is_contiguous()


@pytest.mark.parametrize("token_dim", TOKEN_DIMS)
@pytest.mark.parametrize("r", [1, 4])
def test_mask_marks_exactly_the_values_and_padding_is_zero(base: Path, r: int, token_dim: int) -> None:
    layout = layout_of(base, r, ALL_ROLES, token_dim)
    ones = {module: (torch.ones_like(a), torch.ones_like(b)) for module, (a, b) in random_factors(layout, 0).items()}
    tokenized = tokenize(ones, layout)
    assert tokenized.mask_LD.shape == tokenized.tokens_LD.shape == (layout.num_tokens, token_dim)
    assert torch.equal(tokenized.tokens_LD, tokenized.mask_LD.float())
    assert int(tokenized.mask_LD.sum()) == layout.num_parameters


def test_a_token_holds_one_piece_of_one_rank_row(tiny_llama: Path) -> None:
    layout = layout_of(tiny_llama, 2, ("q", "v"), 20)
    factors = random_factors(layout, 0)
    tokens = tokenize(factors, layout).tokens_LD
    slot = next(slot for slot in layout.slots if slot.factor == "B" and slot.role == "q")
    b = factors[slot.module][1]
    assert torch.equal(tokens[slot.first_token + 2], b[:20, 1])
    assert torch.equal(tokens[slot.first_token + 3, :12], b[20:, 1])


def test_tokens_of_another_shape_are_refused_with_both_shapes(tiny_bert: Path) -> None:
    layout = layout_of(tiny_bert)
    with pytest.raises(LayoutError, match=rf"\(3, 24\).*\({layout.num_tokens}, 24\)"):
        detokenize(torch.zeros(3, 24), layout)


def rows_of(layout: AdapterLayout, role: str, factor: str, depth: float) -> Tensor:
    slot = next(s for s in layout.slots if (s.role, s.factor, s.depth) == (role, factor, depth))
    return positions(layout)[slot.first_token : slot.first_token + layout.lora.r * slot.chunks]


def test_positions_mean_the_same_in_every_target_set(base: Path) -> None:
    few, many = layout_of(base, 2, ("q", "v")), layout_of(base, 2, ALL_ROLES)
    for role in ("q", "v"):
        for factor in ("A", "B"):
            for depth in (0.0, 1.0):
                assert torch.equal(rows_of(few, role, factor, depth), rows_of(many, role, factor, depth))


def test_positions_of_equal_rank_rows_differ_between_ranks_in_the_rank_alone(base: Path) -> None:
    two, four = layout_of(base, 2), layout_of(base, 4)
    short, long = rows_of(two, "v", "A", 1.0), rows_of(four, "v", "A", 1.0)[: len(rows_of(two, "v", "A", 1.0))]
    assert torch.equal(short[:, :-1], long[:, :-1]) and not torch.equal(short[:, -1], long[:, -1])


@pytest.mark.parametrize("token_dim", [7, 32])
def test_positions_are_finite_bounded_and_all_different(base: Path, token_dim: int) -> None:
    layout = layout_of(base, 5, ALL_ROLES, token_dim)
    position = positions(layout)
    assert position.shape == (layout.num_tokens, POSITION_DIM)
    assert torch.isfinite(position).all() and float(position.abs().max()) <= 2.0
    assert len(torch.unique(position, dim=0)) == layout.num_tokens


def moments_of(layout: AdapterLayout, seeds: range) -> TokenMoments:
    moments = TokenMoments()
    for seed in seeds:
        moments.add(layout, tokenize(random_factors(layout, seed), layout).tokens_LD)
    return moments


def test_merged_moments_equal_those_of_everything_at_once(tiny_bert: Path, tiny_llama: Path) -> None:
    first, second = layout_of(tiny_bert), layout_of(tiny_llama, 4)
    merged = moments_of(first, range(3))
    merged.merge(moments_of(second, range(2)))
    merged.merge(moments_of(first, range(3, 7)))
    whole = moments_of(first, range(7))
    whole.merge(moments_of(second, range(2)))
    left, right = merged.finish(), whole.finish()
    assert left.means.keys() == right.means.keys() == {first.digest, second.digest}
    assert all(torch.allclose(left.means[key], right.means[key], atol=1e-7) for key in left.means)
    assert left.scales.keys() == right.scales.keys()
    for key, rows in left.scales.items():
        assert [depth for depth, _ in rows] == [depth for depth, _ in right.scales[key]]
        assert [scale for _, scale in rows] == pytest.approx([scale for _, scale in right.scales[key]], rel=1e-9)


def test_statistics_are_the_mean_and_the_spread_around_it(tiny_bert: Path) -> None:
    layout = layout_of(tiny_bert, 2, ("q", "v"), 20)
    stacked = torch.stack([tokenize(random_factors(layout, seed), layout).tokens_LD for seed in range(5)])
    stats = moments_of(layout, range(5)).finish()
    assert torch.allclose(stats.mean(layout), stacked.mean(0), atol=1e-7)
    slot = layout.slots[3]
    part = slice(slot.first_token, slot.first_token + 2 * slot.chunks)
    spread = (stacked - stacked.mean(0))[:, part][:, token_mask(layout)[part]]
    assert float(stats.scale(layout)[slot.first_token]) == pytest.approx(float(spread.square().mean().sqrt()), rel=1e-5)


def test_denormalize_undoes_normalize_and_clears_padding(base: Path) -> None:
    layout = layout_of(base, 2, ("q", "v"), 20)
    stats, tokens = stats_of(layout), tokenize(random_factors(layout, 9), layout).tokens_LD
    normal = stats.normalize(tokens, layout)
    assert torch.allclose(stats.denormalize(normal, layout), tokens, atol=1e-6)
    assert 0.5 < float(normal[token_mask(layout)].std()) < 2.0
    dirty = normal + 5.0 * ~token_mask(layout)
    assert torch.equal(stats.denormalize(dirty, layout), stats.denormalize(normal, layout))


def test_denormalized_tokens_stay_where_they_are(tiny_bert: Path) -> None:
    layout = layout_of(tiny_bert)
    tokens_LD = torch.empty(layout.num_tokens, layout.token_dim, device="meta")
    assert stats_of(layout).denormalize(tokens_LD, layout).device.type == "meta"


def test_unseen_layout_takes_the_scale_of_its_roles_and_a_mean_of_zero(tiny_bert: Path) -> None:
    seen, unseen = layout_of(tiny_bert, 2), layout_of(tiny_bert, 4, ("q",), 13)
    stats = stats_of(seen)
    assert float(stats.mean(unseen)) == 0.0
    known = {(slot.module, slot.factor): float(stats.scale(seen)[slot.first_token]) for slot in seen.slots}
    for slot in unseen.slots:
        part = stats.scale(unseen)[slot.first_token : slot.first_token + 4 * slot.chunks]
        assert part.flatten().tolist() == [known[slot.module, slot.factor]] * len(part)
    tokens = tokenize(random_factors(unseen, 0), unseen).tokens_LD
    assert torch.allclose(stats.normalize(tokens, unseen) * stats.scale(unseen), tokens)


def test_unseen_depth_takes_the_scale_of_the_nearest_depth(tiny_bert: Path) -> None:
    layout = layout_of(tiny_bert, targets=("q",))
    scales = {("q", f): ((0.1, 1.0), (0.4, 2.0), (0.8, 3.0)) for f in ("A", "B")}
    found = TokenStats(scales, {}).scale(layout)
    assert [float(found[slot.first_token]) for slot in layout.slots] == [1.0, 1.0, 3.0, 3.0]


def test_role_that_the_corpus_never_had_is_refused_by_name(tiny_bert: Path) -> None:
    stats = stats_of(layout_of(tiny_bert))
    with pytest.raises(LayoutError, match=r"'up'.*knows q, v"):
        stats.scale(layout_of(tiny_bert, targets=("q", "up")))


def test_one_adapter_alone_gives_no_division_by_zero(tiny_bert: Path) -> None:
    layout = layout_of(tiny_bert)
    tokens = tokenize(random_factors(layout, 0), layout).tokens_LD
    normal = stats_of(layout, num=1).normalize(tokens, layout)
    assert torch.isfinite(normal).all() and math.isclose(float(normal.abs().max()), 0.0, abs_tol=10.0)
