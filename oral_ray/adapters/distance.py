"""How far adapters are from each other and from none, by their changes of the weights dW = B A.

Computed from products of size r x r, never from dW itself, and so independent of the gauge. G generated, K corpus adapters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from oral_ray.adapters.gauge import Factors


def change_norm(a: Tensor, b: Tensor) -> float:
    """||B A|| of one module's factors A [r, d_in] and B [d_out, r]."""
    return float(((a.double() @ a.double().T) * (b.double().T @ b.double())).sum().clamp(min=0).sqrt())


def relative_distances(generated: Sequence[Factors], corpus: Sequence[Factors]) -> np.ndarray:
    """||dW_g - dW_k|| / ||dW_k|| as [G, K], dW = B A over all modules; independent of the gauge, computed from factors."""
    norms_G, norms_K = _norms(generated), _norms(corpus)
    squared = norms_G[:, None] + norms_K[None] - 2 * _inner(generated, corpus)
    return (squared.clamp(min=0).sqrt() / norms_K.sqrt()).numpy()


def unexplained(
    generated: Sequence[Factors], corpus: Sequence[Factors], use_GK: np.ndarray | None = None
) -> np.ndarray:
    """min_c ||dW_g - sum_k c_k dW_k|| / ||dW_g|| as [G]: what no linear mix of the corpus adapters makes, 0 to 1.

    Each of the mixes takes only the corpus adapters of its row of `use_GK` (all, where there is none).
    """
    gram_KK, cross_GK, norms_G = _inner(corpus, corpus), _inner(generated, corpus), _norms(generated)
    use_GK = np.ones(cross_GK.shape, dtype=bool) if use_GK is None else use_GK
    explained_G = torch.zeros_like(norms_G)
    for g, use_K in enumerate(use_GK):
        cross_K = cross_GK[g, use_K]
        explained_G[g] = cross_K @ torch.linalg.pinv(gram_KK[use_K][:, use_K], hermitian=True) @ cross_K
    return (1 - explained_G / norms_G).clamp(min=0).sqrt().numpy()


def _inner(left: Sequence[Factors], right: Sequence[Factors]) -> Tensor:
    """<dW_l, dW_r> of every pair, summed over modules, float64."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for module in left[0]:
        (a_l, b_l), (a_r, b_r) = _stacked(left, module), _stacked(right, module)
        aa = torch.einsum("gri,ksi->gkrs", a_l, a_r)
        bb = torch.einsum("gor,kos->gkrs", b_l, b_r)
        total += (aa * bb).sum((2, 3))
    return total


def _norms(adapters: Sequence[Factors]) -> Tensor:
    """||dW||^2 of each, float64."""
    total = torch.zeros(len(adapters), dtype=torch.float64)
    for module in adapters[0]:
        a, b = _stacked(adapters, module)
        total += (torch.einsum("gri,gsi->grs", a, a) * torch.einsum("gor,gos->grs", b, b)).sum((1, 2))
    return total


def _stacked(adapters: Sequence[Factors], module: str) -> tuple[Tensor, Tensor]:
    a, b = (torch.stack([factors[module][i].double() for factors in adapters]) for i in (0, 1))
    return a, b
