"""AdapterFactory: from conditions to adapters. THE one path that serving and the nightly job share.

    factory = open_factory(objects, recipe, config.sampling)
    [adapter] = factory.generate([Condition(prompt, base, lora, seed=0)])
    digest = AdapterStore(objects).put(adapter)

Letters: B adapters, L tokens, D token dim, E text size, G model-condition size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from oral_ray.adapters.artifact import Provenance
from oral_ray.adapters.layout import AdapterLayout, AdapterSlot
from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.adapters.tokens import positions, slot_mask, slot_positions, token_mask
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import RegressionObjective, SamplingConfig, canonical_json, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generation.condition import Condition
from oral_ray.generator.condition import ConditionEncoder
from oral_ray.generator.model import Generator
from oral_ray.generator.pieces import NoiseStream, Piece, refuse_pieces, sample_pieces
from oral_ray.objects import Objects
from oral_ray.store.bases import stored_probes
from oral_ray.store.generators import get_generator
from oral_ray.version import code_version

PIECE_TOKENS = 2048  # 2-core EPYC: larger pieces leave the cache, smaller ones pay for calls (docs/scale.md)
_TOGETHER = {"batch_size", "max_batch_tokens"}  # how many are sampled at once is nothing of one adapter

ProbesOf = Callable[[BaseRecord], Mapping[str, Tensor]]
ReadRows = Callable[[], Iterable[tuple[AdapterSlot, Tensor]]]


def effective_sampling(sampling: SamplingConfig, determinism: bool) -> SamplingConfig:
    """The sampling to use: under determinism one adapter at a time, so that a batch cannot change a bit."""
    return sampling.model_copy(update={"batch_size": 1}) if determinism else sampling


def open_factory(
    objects: Objects,
    recipe: str,
    sampling: SamplingConfig,
    device: str = "cpu",
    encoder: ConditionEncoder | None = None,
) -> "AdapterFactory":
    """The factory of a stored generator, with the probes of bases from the same store.

    `encoder` is the one to use where several generators share one. GeneratorError when there is no such generator.
    """
    generator = get_generator(objects, recipe)
    encoder = encoder or ConditionEncoder(generator.spec.condition)
    settings = encoder.config
    return AdapterFactory(generator, encoder, sampling, lambda base: stored_probes(objects, base, settings), device)


class AdapterFactory:
    """A generator with its condition encoder, ready to sample.

    Every adapter draws from its own stream, so a batch changes a sample only by float rounding; `batch_size = 1` (what
    `determinism` sets) removes that too. `probes_of` reads the weight probes of a base, once per base.
    """

    def __init__(
        self,
        generator: Generator,
        encoder: ConditionEncoder,
        sampling: SamplingConfig,
        probes_of: ProbesOf,
        device: str = "cpu",
    ) -> None:
        spec = generator.spec
        if encoder.fingerprint != spec.text_encoder_fingerprint:
            raise GeneratorError(
                f"the generator was trained with text encoder {spec.text_encoder_fingerprint}, this one is "
                f"{encoder.fingerprint}; set condition.text_encoder to the one it was trained with"
            )
        self.generator, self.encoder, self.sampling = generator, encoder, sampling
        self._probes_of = probes_of
        self._encoded_bases: dict[str, Tensor] = {}  # c_model [G] by fingerprint: the same for every adapter of a base
        self._device = torch.device(device)
        generator.network.to(self._device).eval()

    def generate(self, conditions: Sequence[Condition]) -> list[SampledAdapter]:
        """One adapter per condition, in order: sampled together, put together when it is stored.

        One of more than PIECE_TOKENS tokens on a CPU, or `max_batch_tokens` elsewhere, is sampled in pieces, while it is
        stored or written, and never held in memory as a whole. LayoutError for a module whose role the generator does not
        know, GeneratorError where an adapter is too large for a network or sampler that knows no pieces.
        """
        asked = [(condition, self._layout(condition)) for condition in conditions]
        in_pieces = [self._is_sampled_in_pieces(layout) for _, layout in asked]
        tokens = self._sample_together({i: one for i, one in enumerate(asked) if not in_pieces[i]})
        adapters = []
        for i, (condition, layout) in enumerate(asked):
            rows = self._rows_in_pieces(condition, layout) if in_pieces[i] else self._rows(condition, layout, tokens[i])
            adapters.append(SampledAdapter(layout, self._provenance(condition), rows, in_pieces[i]))
        return adapters

    def _layout(self, condition: Condition) -> AdapterLayout:
        """The layout of what a condition asks for; LayoutError where the generator cannot know it."""
        layout = AdapterLayout.of(condition.base.spec, condition.lora, self.generator.spec.token_dim)
        for slot in {(slot.role, slot.factor): slot for slot in layout.slots}.values():
            self.generator.token_stats.slot_scale(slot)
        return layout

    def _is_sampled_in_pieces(self, layout: AdapterLayout) -> bool:
        reason = refuse_pieces(self.generator.network, self.sampling)
        if layout.num_tokens > self.sampling.max_batch_tokens and reason:
            raise GeneratorError(reason)
        # Small pieces pay on a CPU only; other devices are given all that memory was allowed for.
        piece_tokens = PIECE_TOKENS if self._device.type == "cpu" else self.sampling.max_batch_tokens
        return layout.num_tokens > self.sampling.max_batch_tokens or (layout.num_tokens > piece_tokens and not reason)

    def _sample_together(self, asked: Mapping[int, tuple[Condition, AdapterLayout]]) -> dict[int, Tensor]:
        """Normalised weight tokens [L, D] on the CPU, by the number of what is asked."""
        tokens: dict[int, Tensor] = {}
        for batch in self._batches({i: layout.num_tokens for i, (_, layout) in asked.items()}):
            sampled = self._sample([asked[i][0] for i in batch], [asked[i][1] for i in batch])
            tokens |= zip(batch, sampled, strict=True)
        return tokens

    def _rows(self, condition: Condition, layout: AdapterLayout, tokens_LD: Tensor) -> ReadRows:
        return lambda: self._denormalised(layout.slots, tokens_LD, condition, layout)

    def _rows_in_pieces(self, condition: Condition, layout: AdapterLayout) -> ReadRows:
        def read() -> Iterator[tuple[AdapterSlot, Tensor]]:
            for group, tokens_LD in self._pieces(condition, layout):
                yield from self._denormalised(group, tokens_LD, condition, layout)

        return read

    def _denormalised(
        self, slots: Sequence[AdapterSlot], tokens_LD: Tensor, condition: Condition, layout: AdapterLayout
    ) -> Iterator[tuple[AdapterSlot, Tensor]]:
        """Consecutive slots with their values as rank rows [r, width], from their normalised tokens.

        The change of the weights, B A, is multiplied by the condition's scale: it is B that takes it.
        """
        counts = [layout.lora.r * slot.chunks for slot in slots]
        for slot, own_LD in zip(slots, tokens_LD.split(counts), strict=True):
            rows = self.generator.token_stats.slot_rows(own_LD, layout, slot)
            yield slot, condition.scale * rows if slot.factor == "B" and condition.scale != 1.0 else rows

    def _pieces(self, condition: Condition, layout: AdapterLayout) -> Iterator[tuple[list[AdapterSlot], Tensor]]:
        """Consecutive whole slots with their normalised tokens, sampled a piece at a time."""
        text_1E, model_1G = self._encode([condition])
        noise = NoiseStream(_rng(condition), layout.num_tokens, layout.token_dim)
        groups = list(_groups(layout, PIECE_TOKENS))
        pieces = (
            Piece(
                torch.cat([slot_positions(layout, slot) for slot in group]),
                torch.cat([slot_mask(layout, slot) for slot in group]),
                noise.take(sum(layout.lora.r * slot.chunks for slot in group)),
            )
            for group in groups
        )
        sampled = sample_pieces(self.generator.network, pieces, text_1E, model_1G, self.sampling)
        for group, tokens_LD in zip(groups, sampled, strict=True):
            yield group, tokens_LD.cpu()

    def _provenance(self, condition: Condition) -> Provenance:
        is_regression = isinstance(self.generator.spec.generator.objective, RegressionObjective)
        return Provenance(
            origin="regression" if is_regression else "generated",
            base=condition.base.id,
            base_fingerprint=condition.base.fingerprint,
            prompt=condition.prompt,
            seed=condition.seed,
            strength=condition.scale,
            generator=self.generator.spec.recipe,
            sampling=canonical_json(self.sampling.model_dump(mode="json", exclude=_TOGETHER)),
            code_version=code_version(),
        )

    def _encode(self, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor]:
        """c_text [B, E] and c_model [B, G]."""
        text_BE = self.encoder.encode_prompts([condition.prompt for condition in conditions], len(conditions))
        model_BG = torch.stack([self._encode_base(condition.base) for condition in conditions])
        return text_BE.to(self._device), model_BG.to(self._device)

    def _encode_base(self, base: BaseRecord) -> Tensor:
        """c_model [G] of a base."""
        if base.fingerprint not in self._encoded_bases:
            encoded_G = self.encoder.encode_base(base, self._probes_of(base), self.generator.probe_stats)
            self._encoded_bases[base.fingerprint] = encoded_G
        return self._encoded_bases[base.fingerprint]

    def _batches(self, num_tokens: Mapping[int, int]) -> list[list[int]]:
        """Their numbers grouped so that no padded batch exceeds `max_batch_tokens`; longest together."""
        batches: list[list[int]] = []
        for i in sorted(num_tokens, key=lambda i: -num_tokens[i]):
            longest = num_tokens[batches[-1][0]] if batches else 0
            full = not batches or (len(batches[-1]) + 1) * longest > self.sampling.max_batch_tokens
            full = full or len(batches[-1]) >= self.sampling.batch_size
            batches.append([i]) if full else batches[-1].append(i)
        return batches

    def _sample(self, conditions: Sequence[Condition], layouts: Sequence[AdapterLayout]) -> list[Tensor]:
        """Normalised tokens [L, D] of each adapter of one batch."""
        longest, token_dim = max(layout.num_tokens for layout in layouts), layouts[0].token_dim
        rngs = [_rng(condition) for condition in conditions]

        def draw_noise() -> Tensor:
            noise_BLD = torch.zeros(len(layouts), longest, token_dim)
            for i, (layout, rng) in enumerate(zip(layouts, rngs, strict=True)):
                noise_BLD[i, : layout.num_tokens] = torch.randn(layout.num_tokens, token_dim, generator=rng)
            return noise_BLD.to(self._device)

        position_BLP = torch.stack([_padded(positions(layout), longest) for layout in layouts])
        mask_BLD = torch.stack([_padded(token_mask(layout), longest) for layout in layouts])
        text_BE, model_BG = self._encode(conditions)
        tokens_BLD = self.generator.network.sample(
            position_BLP.to(self._device),
            mask_BLD.to(self._device),
            text_BE,
            model_BG,
            draw_noise,
            self.sampling,
        )
        return [tokens_BLD[i, : layout.num_tokens].cpu() for i, layout in enumerate(layouts)]


def _padded(rows_LX: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows_LX, (0, 0, 0, length - len(rows_LX)))


def _rng(condition: Condition) -> torch.Generator:
    """The adapter's own stream of noise."""
    return torch.Generator().manual_seed(
        derive_seed(condition.seed, "sample", condition.base.fingerprint, condition.prompt)
    )


def _groups(layout: AdapterLayout, piece_tokens: int) -> Iterator[list[AdapterSlot]]:
    """Consecutive whole slots of at most `piece_tokens` tokens together; a larger slot is alone."""
    group: list[AdapterSlot] = []
    count = 0
    for slot in layout.slots:
        num_tokens = layout.lora.r * slot.chunks
        if group and count + num_tokens > piece_tokens:
            yield group
            group, count = [], 0
        group.append(slot)
        count += num_tokens
    yield group
