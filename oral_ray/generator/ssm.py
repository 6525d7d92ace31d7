"""The Mamba-2 block, with state space duality (SSD) in plain torch beside the Triton kernel. Sole importer of mamba_ssm.

Dao & Gu, "Transformers are SSMs" (arXiv 2405.21060). Recurrence, per head, with a_t = exp(dt_t A):
    h_t = a_t h_{t-1} + dt_t x_t B_t^T          (h is [P, N])
    y_t = h_t C_t + D x_t
Over chunks of length Q (section 6): inside a chunk y = (C B^T * decay) (dt x), a masked attention; between chunks the
state is carried. Memory is O(L Q), time O(L Q), and `state` lets a caller cut a sequence anywhere.

Parameter names are those of `mamba_ssm.modules.mamba2.Mamba2`, so state dicts are interchangeable.

Letters: B batch, L length, H heads, P head dim, N state dim, K chunks, Q chunk length, E inner width = H P.

    block = Mamba2(width=192, state_dim=64, head_dim=64, chunk_size=64, kernel="auto")
    y_BLM, state = block(x_BLM)
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.errors import GeneratorError

Kernel = Literal["auto", "torch", "cuda"]
ScanFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor]]
EXPAND, CONV_WIDTH = 2, 4


@dataclass(frozen=True, slots=True)
class MambaState:
    """What a cut sequence needs to go on: last inputs of the convolution [B, C, 3], state of the SSD [B, H, P, N]."""

    conv: Tensor
    ssd: Tensor

    def where(self, chosen_B: Tensor, other: "MambaState | None") -> "MambaState":
        """This state for the chosen sequences, the other (None: that of a sequence's start) for the rest."""
        pairs = ((self.conv, other.conv if other else None), (self.ssd, other.ssd if other else None))
        return MambaState(*(
            torch.where(chosen_B.view(-1, *[1] * (mine.dim() - 1)), mine, torch.zeros_like(mine) if its is None else its)
            for mine, its in pairs
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scan:
    """Which kernel scans, decided when a network is built; `on` gives it for the device that the network is on."""

    kernel: Kernel
    has_mamba: bool

    @classmethod
    def find(cls, kernel: Kernel) -> "Scan":
        """Look once whether mamba-ssm is installed."""
        return cls(kernel, importlib.util.find_spec("mamba_ssm") is not None)

    def on(self, device: torch.device) -> ScanFunction:
        """`ssd_cuda` or `ssd`; GeneratorError when `cuda` is asked for and cannot be had on this device."""
        if self.kernel == "cuda" and not self.has_mamba:
            raise GeneratorError(
                "generator.kernel='cuda' needs mamba-ssm, which is not installed; on a machine with CUDA run "
                "pip install 'oral-ray[gpu]' --no-build-isolation, or set generator.kernel=auto"
            )
        if self.kernel == "cuda" and device.type != "cuda":
            raise GeneratorError(
                f"generator.kernel='cuda' needs a CUDA device, the model is on {device}; use kernel=auto"
            )
        return ssd_cuda if self.kernel != "torch" and self.has_mamba and device.type == "cuda" else ssd

    def __str__(self) -> str:
        where = "mamba-ssm on CUDA, torch elsewhere" if self.kernel != "torch" and self.has_mamba else "torch"
        return f"{where} (generator.kernel={self.kernel}, mamba-ssm {'found' if self.has_mamba else 'not installed'})"


class Mamba2(nn.Module):
    """One Mamba-2 mixer [B, L, width] -> [B, L, width], one group, causal."""

    def __init__(self, width: int, state_dim: int, head_dim: int, chunk_size: int, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.inner = EXPAND * width
        if self.inner % head_dim:
            raise GeneratorError(f"generator.head_dim={head_dim} does not divide {self.inner} (2 x width)")
        self.num_heads, self.head_dim, self.state_dim = self.inner // head_dim, head_dim, state_dim
        self.chunk_size = chunk_size
        self.scan = Scan.find(kernel)
        conv_dim = self.inner + 2 * state_dim
        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * state_dim + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, CONV_WIDTH, groups=conv_dim)
        # dt starts log-uniform in [1e-3, 1e-1], stored through the inverse of softplus; A starts at -1 .. -16.
        dt = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), self.num_heads))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.linspace(1.0, 16.0, self.num_heads).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedRMSNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def forward(self, u_BLM: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Mix a sequence, or the next piece of one when the state after the previous piece is given."""
        sizes = [self.inner, self.inner + 2 * self.state_dim, self.num_heads]
        z_BLE, xbc_BLC, dt_BLH = self.in_proj(u_BLM).split(sizes, dim=-1)
        xbc_BCL = xbc_BLC.transpose(1, 2)
        before = xbc_BCL.new_zeros(*xbc_BCL.shape[:2], CONV_WIDTH - 1) if state is None else state.conv
        padded_BCL = torch.cat([before, xbc_BCL], dim=2)
        xbc_BLC = F.silu(self.conv1d(padded_BCL)).transpose(1, 2)
        x_BLE, b_BLN, c_BLN = xbc_BLC.split([self.inner, self.state_dim, self.state_dim], dim=-1)
        x_BLHP = x_BLE.unflatten(-1, (self.num_heads, self.head_dim))
        dt_BLH = F.softplus(dt_BLH + self.dt_bias)
        y_BLHP, ssd_state = self.scan.on(u_BLM.device)(
            x_BLHP, dt_BLH, -self.A_log.exp(), b_BLN, c_BLN, self.chunk_size, None if state is None else state.ssd
        )
        y_BLHP = y_BLHP + self.D[:, None] * x_BLHP
        after = MambaState(padded_BCL[:, :, -(CONV_WIDTH - 1) :], ssd_state)
        return self.out_proj(self.norm(y_BLHP.flatten(-2), z_BLE)), after


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * silu(z)), Mamba-2's normalisation before the output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return F.rms_norm(y * F.silu(z), self.weight.shape, self.weight, 1e-5)


def ssd(
    x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLN: Tensor, c_BLN: Tensor, chunk_size: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Chunked SSD without the skip term: (y [B, L, H, P], state after the last step [B, H, P, N]).

    `a_H` is negative, `dt` positive. The recurrence runs in float32 whatever the inputs are.
    """
    length, dtype = x_BLHP.shape[1], x_BLHP.dtype
    q = min(chunk_size, length)
    pad = -length % q  # steps with dt = 0 change neither output nor state
    x, dt, b, c = (
        F.pad(t.float(), (0, 0) * (t.dim() - 2) + (0, pad)).unflatten(1, (-1, q))
        for t in (x_BLHP, dt_BLH, b_BLN, c_BLN)
    )
    dtx_BKQHP = x * dt[..., None]
    # decay_t = sum_{s <= t} dt_s a, the log of what is left at t of a state from before the chunk
    decay_BKHQ = (dt * a_H.float()).cumsum(2).transpose(2, 3)
    causal_QQ = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
    between_BKHQQ = decay_BKHQ[..., :, None] - decay_BKHQ[..., None, :]
    scores_BKHQQ = between_BKHQQ.masked_fill(~causal_QQ, -math.inf).exp()
    scores_BKHQQ = scores_BKHQQ * torch.einsum("bkqn,bksn->bkqs", c, b)[:, :, None]
    y_BKQHP = torch.einsum("bkhqs,bkshp->bkqhp", scores_BKHQQ, dtx_BKQHP)
    to_end_BKHQ = torch.exp(decay_BKHQ[..., -1:] - decay_BKHQ)
    added_BKHPN = torch.einsum("bkqn,bkhq,bkqhp->bkhpn", b, to_end_BKHQ, dtx_BKQHP)
    kept_BKH = torch.exp(decay_BKHQ[..., -1])
    carried = x.new_zeros(added_BKHPN[:, 0].shape) if state is None else state.float()
    entering = []
    for k in range(x.shape[1]):
        entering.append(carried)
        carried = kept_BKH[:, k, :, None, None] * carried + added_BKHPN[:, k]
    entering_BKHPN = torch.stack(entering, dim=1)
    y_BKQHP = y_BKQHP + torch.einsum("bkqn,bkhpn,bkhq->bkqhp", c, entering_BKHPN, decay_BKHQ.exp())
    return y_BKQHP.flatten(1, 2)[:, :length].to(dtype), carried


def ssd_cuda(
    x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLN: Tensor, c_BLN: Tensor, chunk_size: int, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same function by mamba-ssm's Triton kernel."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # type: ignore[import-not-found]

    return mamba_chunk_scan_combined(
        x_BLHP.contiguous(), dt_BLH.contiguous(), a_H, b_BLN[:, :, None].contiguous(), c_BLN[:, :, None].contiguous(),
        chunk_size, initial_states=state, return_final_states=True,
    )  # fmt: skip
