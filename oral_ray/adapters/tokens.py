"""Adapters as weight tokens, and the statistics that normalise them.

Letters: L weight tokens, D token dim, P position features, r rank.

Positions are semantic features, not indices: role, factor, relative depth, rank index, chunk offset, d_in, d_out. So
one generator serves several architectures, ranks and target sets. `TokenStats` holds one scale a (role, factor,
relative depth) and the mean adapter of every layout of the corpus; an unseen layout gets the scale of the nearest depth
and a mean of zero. Nothing is measured on a single checkpoint: generation could not know it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout, AdapterSlot
from oral_ray.bases.roles import ROLES
from oral_ray.errors import LayoutError

NUM_FREQUENCIES = 6
POSITION_DIM = len(ROLES) + 2 + 3 * (1 + 2 * NUM_FREQUENCIES) + 3
MIN_SCALE = 1e-8


@dataclass(frozen=True, slots=True)
class TokenizedAdapter:
    """An adapter as tokens [L, D], their mask [L, D] (True = a value, False = padding), positions [L, P]."""

    tokens_LD: Tensor
    mask_LD: Tensor
    position_LP: Tensor


def tokenize(factors: Factors, layout: AdapterLayout) -> TokenizedAdapter:
    """Cut an adapter into weight tokens, float32; exact, and undone by `detokenize`."""
    tokens_LD = torch.zeros(layout.num_tokens, layout.token_dim)
    for slot in layout.slots:
        a, b = factors[slot.module]
        rows = a if slot.factor == "A" else b.T
        padded = torch.zeros(layout.lora.r, slot.chunks * layout.token_dim)
        padded[:, : slot.width] = rows
        stop = slot.first_token + layout.lora.r * slot.chunks
        tokens_LD[slot.first_token : stop] = padded.reshape(-1, layout.token_dim)
    return TokenizedAdapter(tokens_LD, token_mask(layout), positions(layout))


def detokenize(tokens_LD: Tensor, layout: AdapterLayout) -> Factors:
    """Put weight tokens [L, D] back together as {module: (A [r, d_in], B [d_out, r])}, float32."""
    if tuple(tokens_LD.shape) != (layout.num_tokens, layout.token_dim):
        raise LayoutError(
            f"tokens are {tuple(tokens_LD.shape)}, the layout needs {(layout.num_tokens, layout.token_dim)}"
        )
    counts = [layout.lora.r * slot.chunks for slot in layout.slots]
    return factors_of(
        (slot, own_LD.reshape(layout.lora.r, -1)[:, : slot.width].float())
        for slot, own_LD in zip(layout.slots, tokens_LD.split(counts), strict=True)
    )


def factors_of(slots: Iterable[tuple[AdapterSlot, Tensor]]) -> Factors:
    """{module: (A [r, d_in], B [d_out, r])} out of every slot's values as rank rows [r, width]."""
    found: dict[str, dict[str, Tensor]] = {}
    for slot, rows in slots:
        found.setdefault(slot.module, {})[slot.factor] = rows
    return {module: (pair["A"].contiguous(), pair["B"].T.contiguous()) for module, pair in found.items()}


@lru_cache(maxsize=16)
def token_mask(layout: AdapterLayout) -> Tensor:
    """Boolean mask [L, D]: which entries of a token are values of the adapter."""
    return torch.cat([slot_mask(layout, slot) for slot in layout.slots])


def slot_mask(layout: AdapterLayout, slot: AdapterSlot) -> Tensor:
    """The rows of `token_mask` of one slot."""
    flat = torch.arange(slot.chunks * layout.token_dim) < slot.width
    return flat.reshape(slot.chunks, layout.token_dim).repeat(layout.lora.r, 1)


@lru_cache(maxsize=16)
def positions(layout: AdapterLayout) -> Tensor:
    """Position features [L, P], all of order one."""
    return torch.cat([slot_positions(layout, slot) for slot in layout.slots])


def slot_positions(layout: AdapterLayout, slot: AdapterSlot) -> Tensor:
    """The rows of `positions` of one slot."""
    rank = torch.arange(layout.lora.r).repeat_interleave(slot.chunks).float()
    offset = torch.arange(slot.chunks).repeat(layout.lora.r).float() * layout.token_dim
    fixed = torch.zeros(len(ROLES) + 2)
    fixed[ROLES.index(slot.role)] = 1.0
    fixed[len(ROLES) + (slot.factor == "B")] = 1.0
    sizes = torch.tensor([math.log2(slot.d_in) / 16, math.log2(slot.d_out) / 16, math.log2(layout.lora.r) / 8])
    count = len(rank)
    return torch.cat(
        [
            fixed.expand(count, -1),
            _waves(torch.full((count,), slot.depth)),
            _waves(rank / 16),
            _waves(offset / 16384),
            sizes.expand(count, -1),
        ],
        dim=1,
    )


def _waves(x_L: Tensor) -> Tensor:
    """x and sin, cos of pi 2^k x: smooth at every scale down to 1/32 of the range."""
    angle = x_L[:, None] * math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES)
    return torch.cat([x_L[:, None], angle.sin(), angle.cos()], dim=1)


@dataclass(frozen=True, slots=True)
class TokenStats:
    """`scales[(role, factor)]` = [(relative depth, scale), ...]; `means[layout digest]` = mean tokens [L, D]."""

    scales: dict[tuple[str, str], tuple[tuple[float, float], ...]]
    means: dict[str, Tensor]

    def normalize(self, tokens_LD: Tensor, layout: AdapterLayout, cut: slice = slice(None)) -> Tensor:
        """(tokens - mean) / scale of all tokens, or of those of a cut."""
        mean = self.mean(layout)
        return (tokens_LD - (mean[cut] if mean.dim() else mean)) / self.scale(layout)[cut]

    def denormalize(self, tokens_LD: Tensor, layout: AdapterLayout) -> Tensor:
        """Undo `normalize`, on the device of the tokens; padding comes out as zero."""
        scale, mean, mask = (
            x.to(tokens_LD.device) for x in (self.scale(layout), self.mean(layout), token_mask(layout))
        )
        return (tokens_LD * scale + mean) * mask

    def mean(self, layout: AdapterLayout) -> Tensor:
        """The mean adapter [L, D] of a layout of the corpus, else zero."""
        return self.means.get(layout.digest, torch.zeros(()))

    def scale(self, layout: AdapterLayout) -> Tensor:
        """One scale a token, [L, 1]: of its role and factor at the nearest relative depth."""
        values: list[float] = []
        for slot in layout.slots:
            values += [self.slot_scale(slot)] * (layout.lora.r * slot.chunks)
        return torch.tensor(values)[:, None]

    def slot_scale(self, slot: AdapterSlot) -> float:
        """The scale of one slot; LayoutError for a role that the corpus does not know."""
        known = self.scales.get((slot.role, slot.factor))
        if known is None:
            roles = sorted({role for role, _ in self.scales})
            raise LayoutError(
                f"the corpus has no adapter of role {slot.role!r}; this generator knows {', '.join(roles)}"
            )
        return min(known, key=lambda item: abs(item[0] - slot.depth))[1]

    def slot_rows(self, tokens_LD: Tensor, layout: AdapterLayout, slot: AdapterSlot) -> Tensor:
        """One slot's normalised tokens as its values [r, width], float32: `denormalize` and `detokenize` of a slot."""
        tokens_LD = tokens_LD * self.slot_scale(slot)
        if layout.digest in self.means:
            tokens_LD = tokens_LD + self.means[layout.digest][slot.first_token : slot.first_token + len(tokens_LD)]
        return tokens_LD.reshape(layout.lora.r, -1)[:, : slot.width].float()


class TokenMoments:
    """Running sums over a corpus, mergeable, from which `TokenStats` follow; one pass, float64."""

    def __init__(self) -> None:
        self._layouts: dict[str, AdapterLayout] = {}
        self._counts: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def add(self, layout: AdapterLayout, tokens_LD: Tensor) -> None:
        """Count one adapter."""
        self._merge(layout, 1, tokens_LD.double(), tokens_LD.double().square())

    def merge(self, other: "TokenMoments") -> None:
        """Count everything another instance has counted."""
        for key, layout in other._layouts.items():
            self._merge(layout, other._counts[key], other._sums[key], other._squares[key])

    def finish(self) -> TokenStats:
        """The mean adapter of every layout; the spread around it, pooled over layouts with the same depth."""
        means = {key: (self._sums[key] / count).float() for key, count in self._counts.items()}
        totals: dict[tuple[str, str, float], list[float]] = {}
        for key, layout in self._layouts.items():
            spread_LD = self._squares[key] - self._sums[key].square() / self._counts[key]
            for slot in layout.slots:
                stop = slot.first_token + layout.lora.r * slot.chunks
                total = totals.setdefault((slot.role, slot.factor, round(slot.depth, 6)), [0.0, 0.0])
                total[0] += max(float(spread_LD[slot.first_token : stop].sum()), 0.0)
                total[1] += self._counts[key] * layout.lora.r * slot.width
        scales: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for (role, factor, depth), (total, count) in sorted(totals.items()):
            scales.setdefault((role, factor), []).append((depth, max(math.sqrt(total / count), MIN_SCALE)))
        return TokenStats({key: tuple(rows) for key, rows in scales.items()}, means)

    def _merge(self, layout: AdapterLayout, count: int, total: Tensor, squares: Tensor) -> None:
        key = layout.digest
        self._layouts[key] = layout
        self._counts[key] = self._counts.get(key, 0) + count
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        self._squares[key] = self._squares[key] + squares if key in self._squares else squares
