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


def unexplained(generated: Sequence[Factors], corpus: Sequence[Factors]) -> np.ndarray:
    """min_c ||dW_g - sum_k c_k dW_k|| / ||dW_g|| as [G]: what no linear mix of the corpus adapters makes, 0 to 1."""
    gram_KK, cross_GK, norms_G = _inner(corpus, corpus), _inner(generated, corpus), _norms(generated)
    explained_G = (cross_GK @ torch.linalg.pinv(gram_KK, hermitian=True) * cross_GK).sum(1)
    return (1 - explained_G / norms_G).clamp(min=0).sqrt().numpy()


def _inner(left: Sequence[Factors], right: Sequence[Factors]) -> Tensor:
    """<dW_l, dW_r> of every pair, summed over modules, float64."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for module in left[0]:
        a_l, b_l = (torch.stack([factors[module][i].double() for factors in left]) for i in (0, 1))
        a_r, b_r = (torch.stack([factors[module][i].double() for factors in right]) for i in (0, 1))
        aa = torch.einsum("gri,ksi->gkrs", a_l, a_r)
        bb = torch.einsum("gor,kos->gkrs", b_l, b_r)
        total += (aa * bb).sum((2, 3))
    return total


def _norms(adapters: Sequence[Factors]) -> Tensor:
    return torch.stack([_inner([factors], [factors])[0, 0] for factors in adapters])
