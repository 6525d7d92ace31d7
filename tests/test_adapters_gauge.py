"""The gauge: one representative of (G A, B G^-1) for every invertible G."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oral_ray.adapters.gauge import Factors, balance, canonical

RANKS, SEEDS = st.integers(1, 8), st.integers(0, 10_000)
EXAMPLES = settings(max_examples=40, deadline=None)


def draw(r: int, seed: int, dtype: torch.dtype = torch.float64) -> Factors:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"m": (24, 17), "n": (9, 31)}
    return {
        name: (
            torch.randn(r, d_in, generator=rng, dtype=torch.float64).to(dtype),
            torch.randn(d_out, r, generator=rng, dtype=torch.float64).to(dtype),
        )
        for name, (d_in, d_out) in shapes.items()
    }


def regauged(factors: Factors, seed: int) -> Factors:
    """(G A, B G^-1) with a random G, another one a module: condition number up to about 50, no singular value near 1."""
    rng = torch.Generator().manual_seed(seed)
    changed = {}
    for name, (a, b) in factors.items():
        left, right = (torch.linalg.qr(torch.randn(len(a), len(a), generator=rng, dtype=a.dtype))[0] for _ in range(2))
        spread = 4 * torch.rand(len(a), generator=rng, dtype=a.dtype) - 2
        g = left @ torch.diag(torch.exp((spread.abs() + 2) / 2 * spread.sign())) @ right
        changed[name] = (g @ a, b @ torch.linalg.inv(g))
    return changed


def distance(left: Factors, right: Factors) -> float:
    return sum(float((x - y).square().sum()) for m in left for x, y in zip(left[m], right[m], strict=True)) ** 0.5


def product(factors: Factors) -> dict[str, Tensor]:
    return {name: b.double() @ a.double() for name, (a, b) in factors.items()}


@EXAMPLES
@given(r=RANKS, seed=SEEDS, with_reference=st.booleans())
def test_weight_change_is_preserved_to_float_precision(r: int, seed: int, with_reference: bool) -> None:
    factors = draw(r, seed, torch.float32)
    fixed = canonical(factors, canonical(draw(r, seed + 1, torch.float32)) if with_reference else None)
    assert all(factor.dtype == torch.float32 for pair in fixed.values() for factor in pair)
    for name, wanted in product(factors).items():
        assert (product(fixed)[name] - wanted).norm() < 1e-6 * wanted.norm()


@EXAMPLES
@given(r=RANKS, seed=SEEDS, with_reference=st.booleans())
def test_every_gauge_has_the_same_canonical_form(r: int, seed: int, with_reference: bool) -> None:
    factors = draw(r, seed)
    reference = canonical(draw(r, seed + 1)) if with_reference else None
    other = regauged(factors, seed + 2)
    assert distance(factors, other) > 0.1 * distance(factors, {m: (0 * a, 0 * b) for m, (a, b) in factors.items()})
    assert distance(canonical(factors, reference), canonical(other, reference)) < 1e-6


@EXAMPLES
@given(r=RANKS, seed=SEEDS, with_reference=st.booleans())
def test_canonical_form_of_a_canonical_form_is_itself(r: int, seed: int, with_reference: bool) -> None:
    reference = canonical(draw(r, seed + 1)) if with_reference else None
    once = canonical(draw(r, seed), reference)
    assert distance(canonical(once, reference), once) < 1e-8


@EXAMPLES
@given(r=RANKS, seed=SEEDS)
def test_balanced_factors_share_the_singular_values(r: int, seed: int) -> None:
    a, b = balance(*draw(r, seed)["m"])
    wanted = torch.linalg.svdvals(b @ a)[:r]
    assert torch.allclose(a @ a.T, torch.diag(wanted), atol=1e-9)
    assert torch.allclose(b.T @ b, torch.diag(wanted), atol=1e-9)


@EXAMPLES
@given(r=st.integers(2, 8), seed=SEEDS)
def test_alignment_brings_an_adapter_as_near_to_the_reference_as_a_rotation_can(r: int, seed: int) -> None:
    factors, reference = draw(r, seed), canonical(draw(r, seed + 1))
    balanced = {name: balance(*pair) for name, pair in factors.items()}
    rotation = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(seed)).double())[0]
    rotated = {name: (rotation.T @ a, b @ rotation) for name, (a, b) in balanced.items()}
    aligned = distance(canonical(factors, reference), reference)
    assert aligned < min(distance(balanced, reference), distance(rotated, reference))
    assert aligned <= distance(canonical(factors), reference) + 1e-9


def test_another_gauge_of_the_reference_is_brought_back_to_it() -> None:
    reference = canonical(draw(4, 0))
    assert distance(canonical(regauged(reference, 1), reference), reference) < 1e-9


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("case", ["zero B", "zero A", "both zero", "equal rows", "equal singular values", "huge"])
def test_degenerate_adapters_stay_finite_and_the_same(case: str, with_reference: bool) -> None:
    a, b = draw(4, 0, torch.float32)["m"]
    if case in ("zero B", "both zero"):
        b = torch.zeros_like(b)
    if case in ("zero A", "both zero"):
        a = torch.zeros_like(a)
    if case == "equal rows":
        a, b = a[:1].repeat(4, 1), b[:, :1].repeat(1, 4)
    if case == "equal singular values":
        a, b = torch.eye(4, 24), torch.eye(17, 4)
    if case == "huge":
        a, b = a * 1e15, b * 1e15
    reference = canonical(draw(4, 1, torch.float32)) if with_reference else None
    fixed_a, fixed_b = canonical({"m": (a, b)}, reference)["m"]
    assert torch.isfinite(fixed_a).all() and torch.isfinite(fixed_b).all()
    wanted = b.double() @ a.double()
    assert (fixed_b.double() @ fixed_a.double() - wanted).norm() <= 1e-6 * wanted.norm()


def test_zero_reference_does_not_harm() -> None:
    zero = {name: (0 * a, 0 * b) for name, (a, b) in draw(3, 1).items()}
    factors = draw(3, 0)
    fixed = canonical(factors, zero)
    assert all(torch.allclose(product(fixed)[m], product(factors)[m]) for m in factors)


@EXAMPLES
@given(r=st.integers(9, 24), seed=SEEDS, with_reference=st.booleans())
def test_a_rank_above_the_width_of_a_module_keeps_the_change_in_the_rows_that_it_needs(
    r: int, seed: int, with_reference: bool
) -> None:
    factors = draw(r, seed)  # "n" has 9 outputs, "m" 17 inputs
    reference = canonical(draw(r, seed + 1)) if with_reference else None
    fixed = canonical(factors, reference)
    assert {name: (a.shape, b.shape) for name, (a, b) in fixed.items()} == {
        name: (a.shape, b.shape) for name, (a, b) in factors.items()
    }
    for name, wanted in product(factors).items():
        assert (product(fixed)[name] - wanted).norm() < 1e-9 * wanted.norm()
    assert distance(canonical(regauged(factors, seed + 2), reference), fixed) < 1e-5
    if reference is None:
        assert not fixed["n"][0][9:].any()
        assert not fixed["n"][1][:, 9:].any()
