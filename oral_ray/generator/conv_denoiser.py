"""The head of RPG (arXiv 2501.11587, section 3.3), our own form of it: 1-D convolutions along each token.

A token is a signal of one channel; every layer adds the prototype and the embedded time, both as long as the token (so
d_model = token size), and convolves with kernel 7. Channels 1 -> 64 -> 96 -> 64 -> 1 are one of its published settings;
the skip connections of a U-Net are left out, which makes it cheaper, not dearer, than the original. The cost of a
value is that of the channels (87,000 multiply-adds a step there), whatever the size of the token.

Letters: B batch, L tokens, D token dim, M prototype width, C channels.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.generator.denoiser import TIME_FEATURES, time_features

KERNEL = 7


class ConvDenoiser(nn.Module):
    """The same interface as `Denoiser`."""

    def __init__(self, token_dim: int, channels: Sequence[int], prototype_width: int) -> None:
        super().__init__()
        sizes = (1, *channels, 1)
        self.prototype_in = nn.Linear(prototype_width, token_dim)
        self.time_in = nn.ModuleList(nn.Linear(2 * TIME_FEATURES, token_dim) for _ in sizes[1:])
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, KERNEL, padding=KERNEL // 2) for before, after in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, size) for size in channels)

    def forward(self, noisy_BLD: Tensor, prototypes_BLM: Tensor, time_B: Tensor) -> Tensor:
        """The prediction [B, L, D] of the objective for noisy tokens at noise levels 0 to 1."""
        batch, num_tokens, token_dim = noisy_BLD.shape
        prototype_BLD = self.prototype_in(prototypes_BLM)
        times_B = time_features(time_B).to(noisy_BLD.dtype)
        hidden = noisy_BLD.reshape(-1, 1, token_dim)
        for i, layer in enumerate(self.layers):
            added_BLD = prototype_BLD + self.time_in[i](times_B)[:, None]
            hidden = layer(hidden + added_BLD.reshape(-1, 1, token_dim))
            if i < len(self.norms):
                hidden = F.silu(self.norms[i](hidden))
        return hidden.reshape(batch, num_tokens, token_dim)
