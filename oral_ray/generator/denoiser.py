"""Per-token denoiser: an MLP with adaptive layer norm, conditioned on the token's prototype and the noise level.

ORAL (arXiv 2503.24354, section 3.3) and RPG (arXiv 2501.11587) denoise every token on its own given its prototype; they
use 1-D convolutions, this is the adaLN-zero block of DiT (arXiv 2212.09748, section 3.2) without attention. Tokens do
not see one another here: what they share is in the prototypes.

Letters: B batch, L tokens, D token dim, W denoiser width, M prototype width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

TIME_FEATURES = 64


class Denoiser(nn.Module):
    """(noisy tokens [B, L, D], prototypes [B, L, M], time [B] in [0, 1]) -> raw prediction [B, L, D]."""

    def __init__(self, token_dim: int, width: int, num_blocks: int, prototype_width: int) -> None:
        super().__init__()
        self.tokens_in = nn.Linear(token_dim, width)
        self.prototype_in = nn.Linear(prototype_width, width)
        self.time_in = nn.Sequential(nn.Linear(2 * TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_blocks))
        self.modulate_out = nn.Linear(width, 2 * width)
        self.tokens_out = nn.Linear(width, token_dim)
        for layer in (self.modulate_out, self.tokens_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, noisy_BLD: Tensor, prototypes_BLM: Tensor, time_B: Tensor) -> Tensor:
        """The prediction [B, L, D] of the objective for noisy tokens at noise levels 0 to 1."""
        time_B1W = self.time_in(time_features(time_B).to(noisy_BLD.dtype))[:, None]
        condition_BLW = F.silu(self.prototype_in(prototypes_BLM) + time_B1W)
        hidden_BLW = self.tokens_in(noisy_BLD)
        for block in self.blocks:
            hidden_BLW = block(hidden_BLW, condition_BLW)
        shift, scale = self.modulate_out(condition_BLW).chunk(2, dim=-1)
        return self.tokens_out(modulate(hidden_BLW, shift, scale))


class Block(nn.Module):
    """Residual MLP block with adaLN-zero: shift, scale and gate come from the condition, the gate starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden_BLW: Tensor, condition_BLW: Tensor) -> Tensor:
        """The hidden states [B, L, W] with this block's update, modulated by the condition."""
        shift, scale, gate = self.modulation(condition_BLW).chunk(3, dim=-1)
        update = self.down(F.gelu(self.up(modulate(hidden_BLW, shift, scale)), approximate="tanh"))
        return hidden_BLW + gate * update


def modulate(hidden_BLW: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then the condition's scale and shift."""
    return F.layer_norm(hidden_BLW, hidden_BLW.shape[-1:]) * (1 + scale) + shift


def time_features(time_B: Tensor) -> Tensor:
    """sin and cos of a time in [0, 1] at 64 frequencies from 1 to 1000, [B, 128], float32."""
    frequency = torch.exp(torch.linspace(0, math.log(1000.0), TIME_FEATURES, device=time_B.device))
    angle = time_B.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
