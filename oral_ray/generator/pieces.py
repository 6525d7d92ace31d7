"""Sampling one adapter piece by piece: memory of one piece, whatever the adapter's size.

A token's denoising depends on its own noise and prototype alone, and prototypes on what came before through the state of
the recurrence; so a piece is sampled to the end before the next one is begun, and only that state is carried. Noise comes
from the adapter's one stream in order, so that its values do not depend on where the pieces are cut.

Policy of number formats: noise, the sampler's arithmetic, the recurrence's scan and what comes out are float32; matrix
products are of the network's own type (float32; `network.to(torch.bfloat16)` halves its memory, for devices that gain).

Letters: L tokens of a piece, D token dim, P position features, E text size, G model-condition size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from oral_ray.config import SamplingConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator.guidance import guidance_terms
from oral_ray.generator.model import AnyNetwork
from oral_ray.generator.network import Network
from oral_ray.generator.ssm import MambaState

NOISE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one adapter: positions [L, P], mask [L, D], unit noise [L, D]."""

    position_LP: Tensor
    mask_LD: Tensor
    noise_LD: Tensor


class NoiseStream:
    """The values of `torch.randn(num_tokens, token_dim)` of one stream, in pieces.

    torch fills blocks of 16 values at a time, so it is always asked for a multiple of 16 tokens, but for the last ones.
    """

    def __init__(self, rng: torch.Generator, num_tokens: int, token_dim: int) -> None:
        self._rng, self._to_draw = rng, num_tokens
        self._left = torch.empty(0, token_dim)

    def take(self, num_tokens: int) -> Tensor:
        """The next tokens [num_tokens, D]; drawn where they stay, as copies cost more than the draw."""
        if num_tokens > len(self._left) + self._to_draw:
            raise ValueError(f"{num_tokens} tokens were asked for, {len(self._left) + self._to_draw} are left")
        out = torch.empty(num_tokens, self._left.shape[1])
        have = min(len(self._left), num_tokens)
        out[:have], self._left = self._left[:have], self._left[have:]
        while have < num_tokens:
            # the last draw takes what is left: a short one of its own could fall below a block
            draw = NOISE_TOKENS if self._to_draw >= 2 * NOISE_TOKENS else self._to_draw
            self._to_draw -= draw
            if have + draw <= num_tokens:
                out[have : have + draw].normal_(generator=self._rng)
            else:
                drawn = torch.randn(draw, out.shape[1], generator=self._rng)
                out[have:], self._left = drawn[: num_tokens - have], drawn[num_tokens - have :]
            have += draw
        return out


def refuse_pieces(network: AnyNetwork, sampling: SamplingConfig) -> str:
    """Why an adapter cannot be sampled in pieces by this network and sampler; empty when it can."""
    if not isinstance(network, Network):
        return "a latent generator cannot sample in pieces; use the per-token generator"
    if sampling.sampler == "ddpm":
        return (
            "sampler 'ddpm' draws noise for the whole adapter at every step and cannot sample it in pieces; "
            "use sampling.sampler=ddim or dpmpp"
        )
    return ""


@torch.no_grad()
def sample_pieces(
    network: AnyNetwork, pieces: Iterable[Piece], text_1E: Tensor, model_1G: Tensor, sampling: SamplingConfig
) -> Iterator[Tensor]:
    """Normalised tokens [L, D] of each piece, in order; what `Network.sample` gives for the whole, up to rounding.

    GeneratorError for a network or a sampler that cannot.
    """
    if (reason := refuse_pieces(network, sampling)) or not isinstance(network, Network):
        raise GeneratorError(reason)
    like = next(network.parameters())
    text_1E, model_1G = text_1E.to(like), model_1G.to(like)
    terms = guidance_terms(sampling, text_1E)
    states: list[list[MambaState | None] | None] = [None] * len(terms)
    for piece in pieces:
        position_1LP, mask_1LD = piece.position_LP[None].to(like), piece.mask_LD[None].to(like.device)
        noise_1LD = piece.noise_LD[None].to(like.device)
        branches: list[tuple[float, Tensor]] = []
        for i, (weight, use_text, use_model) in enumerate(terms):
            prototypes, states[i] = network.prototypes(position_1LP, text_1E, model_1G, use_text, use_model, states[i])
            branches.append((weight, prototypes))
        yield network.sample_tokens(branches, mask_1LD, lambda noise=noise_1LD: noise, sampling)[0]
