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

    def inner(left: Sequence[Factors], right: Sequence[Factors]) -> torch.Tensor:
        total = torch.zeros(len(left), len(right), dtype=torch.float64)
        for module in left[0]:
            a_l, b_l = (torch.stack([factors[module][i].double() for factors in left]) for i in (0, 1))
            a_r, b_r = (torch.stack([factors[module][i].double() for factors in right]) for i in (0, 1))
            aa = torch.einsum("gri,ksi->gkrs", a_l, a_r)
            bb = torch.einsum("gor,kos->gkrs", b_l, b_r)
            total += (aa * bb).sum((2, 3))
        return total

    norms_G = torch.stack([inner([f], [f])[0, 0] for f in generated])
    norms_K = torch.stack([inner([f], [f])[0, 0] for f in corpus])
    squared = norms_G[:, None] + norms_K[None] - 2 * inner(generated, corpus)
    return (squared.clamp(min=0).sqrt() / norms_K.sqrt()).numpy()
