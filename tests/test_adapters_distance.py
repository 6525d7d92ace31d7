"""Distances of adapters are those of the dense weight changes, whatever the gauge."""

import numpy as np
import pytest
import torch
from factory_fixtures import ALL_ROLES, layout_of, random_factors
from hypothesis import given, settings
from hypothesis import strategies as st

from oral_ray.adapters.distance import change_norm, relative_distances, unexplained
from oral_ray.adapters.gauge import canonical


def test_the_norm_of_a_change_is_that_of_the_dense_product() -> None:
    a, b = torch.randn(3, 8), torch.randn(6, 3)
    assert change_norm(a, b) == pytest.approx(float((b.double() @ a.double()).norm()), rel=1e-12)


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_llama"])
def test_relative_distances_are_those_of_the_dense_weight_changes(base: str, request: pytest.FixtureRequest) -> None:
    layout = layout_of(request.getfixturevalue(base), 3, ALL_ROLES)
    made, corpus = ([random_factors(layout, seed) for seed in seeds] for seeds in ((0, 1, 2), (2, 3, 4, 5)))
    found = relative_distances(made, corpus)
    for i, left in enumerate(made):
        for j, right in enumerate(corpus):
            squares = [((b @ a - right[m][1] @ right[m][0]) ** 2).sum() for m, (a, b) in left.items()]
            norm = torch.stack([(b @ a).square().sum() for a, b in right.values()]).sum()
            assert found[i, j] == pytest.approx(float((torch.stack(squares).sum() / norm).sqrt()), abs=1e-5)
    assert found.shape == (3, 4) and found[2, 0] < 1e-6 < found[0, 0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_relative_distances_do_not_depend_on_the_gauge(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)

    def draw(num: int) -> list[dict]:
        return [
            {m: (torch.randn(3, 8, generator=rng), torch.randn(6, 3, generator=rng)) for m in ("a", "b")}
            for _ in range(num)
        ]

    made, corpus = draw(2), draw(3)
    wanted = relative_distances(made, corpus)
    assert np.allclose(relative_distances([canonical(f) for f in made], corpus), wanted, atol=1e-5)
    assert np.allclose(relative_distances(made, [canonical(f, corpus[0]) for f in corpus]), wanted, atol=1e-5)
    rank_two = [{m: (a[:2], b[:, :2]) for m, (a, b) in f.items()} for f in made]
    padded = [
        {m: (torch.cat([a, 0 * a[:1]]), torch.cat([b, b[:, :1]], 1)) for m, (a, b) in f.items()} for f in rank_two
    ]
    assert np.allclose(relative_distances(rank_two, corpus), relative_distances(padded, corpus), atol=1e-5)


def test_what_no_mix_of_the_corpus_makes_is_the_dense_residual() -> None:
    rng = torch.Generator().manual_seed(0)

    def draw() -> dict:
        return {m: (torch.randn(2, 8, generator=rng), torch.randn(6, 2, generator=rng)) for m in ("a", "b")}

    corpus, other = [draw() for _ in range(3)], draw()
    stretched = {m: (a, -2.5 * b) for m, (a, b) in corpus[1].items()}
    dense = torch.stack([torch.cat([(b @ a).flatten() for a, b in one.values()]) for one in corpus]).double()
    wanted = torch.cat([(b @ a).flatten() for a, b in other.values()]).double()
    best = torch.linalg.lstsq(dense.T, wanted[:, None]).solution
    residual = float((wanted - (dense.T @ best)[:, 0]).norm() / wanted.norm())
    assert 0.5 < residual < 1
    assert unexplained([other, stretched, corpus[0]], corpus) == pytest.approx([residual, 0, 0], abs=1e-5)
    assert unexplained([other], [*corpus, corpus[0]])[0] == pytest.approx(residual, abs=1e-5)  # the same one twice
    use = np.array([[True] * 3, [True, False, True], [False] * 3])  # the second has its own one left out
    found = unexplained([other, stretched, corpus[0]], corpus, use)
    assert found[[0, 2]] == pytest.approx([residual, 1], abs=1e-5) and 0.5 < found[1] < 1
