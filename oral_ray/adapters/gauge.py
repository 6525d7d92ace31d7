"""One representative of every adapter: (A, B) and (G A, B G^-1) are the same adapter for every invertible G.

First the balanced form: thin QR of B and A^T, SVD of the r x r core, sqrt(S) on each side, so A A^T = B^T B = S. What is
left is a rotation: the orthogonal Procrustes solution (Schonemann 1966) turns it to a reference adapter; without a
reference the sign of every row is fixed. B A is preserved to float precision (computed in float64). Where r is larger
than I or O, the rank of B A is not, and the rows of A and columns of B that are left over are zero.

Letters: r rank, I d_in, O d_out.
"""

import torch
from torch import Tensor, nn

Factors = dict[str, tuple[Tensor, Tensor]]
"""Module name -> (A [r, I], B [O, r])."""


def canonical(factors: Factors, reference: Factors | None = None) -> Factors:
    """The canonical form of an adapter, rotated to the reference where there is one; dtype is kept."""
    fixed = {}
    for module, (a_rI, b_Or) in factors.items():
        a, b = balance(a_rI.double(), b_Or.double())
        if reference is None:
            a, b = fix_signs(a, b)
        else:
            a, b = align(a, b, reference[module][0].double(), reference[module][1].double())
        fixed[module] = (a.to(a_rI.dtype), b.to(b_Or.dtype))
    return fixed


def balance(a_rI: Tensor, b_Or: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) with the same product and A A^T = B^T B = diag of its singular values, largest first."""
    q_Or, r_b = torch.linalg.qr(b_Or)
    q_Ir, r_a = torch.linalg.qr(a_rI.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s.sqrt()
    spare = len(a_rI) - len(s)
    a, b = root[:, None] * (vh @ q_Ir.T), (q_Or @ u) * root
    return nn.functional.pad(a, (0, 0, 0, spare)), nn.functional.pad(b, (0, spare))


def fix_signs(a_rI: Tensor, b_Or: Tensor) -> tuple[Tensor, Tensor]:
    """Flip rank directions so that the largest entry of each column of B is positive."""
    peak = b_Or.gather(0, b_Or.abs().argmax(0, keepdim=True)).squeeze(0)
    sign = torch.where(peak < 0, -1.0, 1.0).to(b_Or)
    return sign[:, None] * a_rI, b_Or * sign


def align(a_rI: Tensor, b_Or: Tensor, ref_a_rI: Tensor, ref_b_Or: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate by the orthogonal Q that brings (Q^T A, B Q) nearest to the reference in the Frobenius norm."""
    u, _, vh = torch.linalg.svd(a_rI @ ref_a_rI.T + b_Or.T @ ref_b_Or)
    q = u @ vh
    return q.T @ a_rI, b_Or @ q
