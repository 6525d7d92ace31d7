"""Training batches from corpus rows: which rows, which wording of the prompt, which noise, all by (seed, step, rank).

A worker's share of the corpus is kept in memory after the first pass when it fits `cache_bytes`, and permuted anew
every epoch; a larger one is streamed again and again, shuffled within pools of `cache_bytes`. The batch of a step
depends on nothing but its number, so a resumed run continues as if it had never stopped.

With `window_tokens` = W an adapter's tokens are cut into windows of W, and a step trains on one of them. It is drawn in
proportion to the values in it, so that the mean loss over draws is that of the whole adapter; the recurrence runs over all
windows before it, one at a time and without gradient. So memory is that of a window, whatever the adapter.

Letters: B adapters, L tokens (of the longest in the batch), D token dim, P position features, E text, G model size,
N windows before the one that is trained on, W tokens a window.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import POSITION_DIM, TokenStats, positions, token_mask
from oral_ray.config import TrainingConfig, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.diffusion import sample_times


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One adapter of the corpus: its digest, what it is for, its gauge-fixed tokens [L, D]."""

    digest: str
    layout: str
    base: str
    task: str
    tokens_LD: Tensor


@dataclass(frozen=True, slots=True)
class CorpusTables:
    """What rows refer to: layouts by digest, prompt embeddings by task [n, E], base embeddings by id [G], statistics."""

    layouts: dict[str, AdapterLayout]
    prompts: dict[str, Tensor]
    bases: dict[str, Tensor]
    stats: TokenStats


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch, padded to its longest adapter, or window of one: what a network computes its loss of.

    Normalised tokens `x0_BLD` with their mask, positions and condition; whether each half of the condition is used; the
    noise and its level (0 to 1). `before_BNWP` are the positions of the `num_before_B` windows of W tokens before the one
    that is trained on; N is 0 where no adapter has any.
    """

    x0_BLD: Tensor
    mask_BLD: Tensor
    position_BLP: Tensor
    text_BE: Tensor
    model_BG: Tensor
    use_text_B: Tensor
    use_model_B: Tensor
    noise_BLD: Tensor
    time_B: Tensor
    before_BNWP: Tensor
    num_before_B: Tensor

    @property
    def condition(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text [B, E], base [B, G], and whether each of them is used [B]."""
        return self.text_BE, self.model_BG, self.use_text_B, self.use_model_B

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def parts(self, num: int) -> "list[Batch]":
        """`num` batches of equally many adapters."""
        return [Batch(*part) for part in zip(*(getattr(self, f.name).chunk(num) for f in fields(self)), strict=True)]


def is_held_out(digest: str, frac: float) -> bool:
    """Whether an adapter is kept for the validation loss; decided by its digest alone."""
    return int.from_bytes(hashlib.sha256(f"validation/{digest}".encode()).digest()[:8], "big") < frac * 2**64


class RowSource:
    """A worker's share of the corpus: held-out rows for validation, endless batches of the others.

    `read()` is one pass over the share. The first pass is made here; a share that fits `cache_bytes` is never read again.
    """

    def __init__(self, read: Callable[[], Iterable[CorpusRow]], training: TrainingConfig) -> None:
        self._read, self._training = read, training
        self.held_out: list[CorpusRow] = []
        self._kept: list[CorpusRow] = []
        num_bytes = 0
        for row in read():
            if is_held_out(row.digest, training.validation_frac):
                self.held_out.append(row)
                continue
            self._kept.append(row)
            num_bytes += row.tokens_LD.nbytes
            if num_bytes > training.cache_bytes:
                break
        self._fits = num_bytes <= training.cache_bytes
        if not self._kept:
            raise GeneratorError("the corpus share of this worker is empty; write more shards or use fewer workers")
        self.held_out.sort(key=lambda row: row.digest)
        self._kept.sort(key=lambda row: row.digest)

    def batches(self, batch_size: int, seed: int, first_step: int) -> Iterator[list[CorpusRow]]:
        """Endless batches from the batch of `first_step` (counted from 0) on."""
        order = self._permuted(seed, first_step * batch_size) if self._fits else self._streamed(seed)
        if not self._fits:
            order = itertools.islice(order, first_step * batch_size, None)
        while True:
            yield list(itertools.islice(order, batch_size))

    def _permuted(self, seed: int, position: int) -> Iterator[CorpusRow]:
        epoch, offset = divmod(position, len(self._kept))
        for number in itertools.count(epoch):
            for i in _permutation(len(self._kept), derive_seed(seed, "epoch", number))[offset:]:
                yield self._kept[i]
            offset = 0

    def _streamed(self, seed: int) -> Iterator[CorpusRow]:
        for epoch in itertools.count():
            rows = (row for row in self._read() if not is_held_out(row.digest, self._training.validation_frac))
            for number in itertools.count():
                pool = _pool(rows, self._training.cache_bytes)
                for i in _permutation(len(pool), derive_seed(seed, "pool", epoch, number)):
                    yield pool[i]
                if not pool:
                    break


def make_batch(
    rows: list[CorpusRow], tables: CorpusTables, drop_text_frac: float, drop_model_frac: float, high_noise_bias: float,
    seed: int, window_tokens: int | None = None,
) -> Batch:  # fmt: skip
    """Cut, normalise, pad and condition rows; every draw but that of the windows comes from one stream with this seed."""
    rng = torch.Generator().manual_seed(seed)
    cuts = _windows([tables.layouts[row.layout] for row in rows], window_tokens, derive_seed(seed, "windows"))
    num, longest = len(rows), max(cut.stop - cut.start for cut in cuts)
    token_dim = rows[0].tokens_LD.shape[1]
    x0 = torch.zeros(num, longest, token_dim)
    mask = torch.zeros(num, longest, token_dim, dtype=torch.bool)
    position = torch.zeros(num, longest, POSITION_DIM)
    num_before = torch.tensor([cut.start // (window_tokens or 1) for cut in cuts])
    before = torch.zeros(num, int(num_before.max()), window_tokens or 0, POSITION_DIM)
    text, model = [], []
    for i, (row, cut) in enumerate(zip(rows, cuts, strict=True)):
        layout, length = tables.layouts[row.layout], cut.stop - cut.start
        mask[i, :length] = token_mask(layout)[cut]
        x0[i, :length] = tables.stats.normalize(row.tokens_LD[cut], layout, cut) * mask[i, :length]
        position[i, :length] = positions(layout)[cut]
        before[i].flatten(0, 1)[: cut.start] = positions(layout)[: cut.start]
        wordings = tables.prompts[row.task]
        text.append(wordings[int(torch.randint(len(wordings), (), generator=rng))])
        model.append(tables.bases[row.base])
    return Batch(
        x0,
        mask,
        position,
        torch.stack(text),
        torch.stack(model),
        torch.rand(num, generator=rng) >= drop_text_frac,
        torch.rand(num, generator=rng) >= drop_model_frac,
        torch.randn(x0.shape, generator=rng),
        sample_times(num, high_noise_bias, rng).float(),
        before,
        num_before,
    )


def _windows(layouts: list[AdapterLayout], window_tokens: int | None, seed: int) -> list[slice]:
    """The tokens of each adapter that are trained on: all, or one window, drawn in proportion to the values in it."""
    rng = torch.Generator().manual_seed(seed)
    cuts = []
    for layout in layouts:
        length, first = layout.num_tokens, 0
        if window_tokens and length > window_tokens:
            values_L = _values_up_to(layout)
            drawn = torch.randint(int(values_L[-1]), (), generator=rng)
            first = int(torch.searchsorted(values_L, drawn, right=True)) // window_tokens * window_tokens
        cuts.append(slice(first, min(first + (window_tokens or length), length)))
    return cuts


@lru_cache(maxsize=16)
def _values_up_to(layout: AdapterLayout) -> Tensor:
    """How many values of the adapter stand in the tokens up to each one, that one included, [L]."""
    return token_mask(layout).sum(1).cumsum(0)


def _pool(rows: Iterator[CorpusRow], max_bytes: int) -> list[CorpusRow]:
    """The next rows of up to about `max_bytes` together."""
    pool: list[CorpusRow] = []
    num_bytes = 0
    while num_bytes <= max_bytes and (row := next(rows, None)) is not None:
        pool.append(row)
        num_bytes += row.tokens_LD.nbytes
    return pool


def _permutation(num_rows: int, seed: int) -> list[int]:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
