"""AdapterFactory: from conditions and seeds to artifacts. THE one path that serving and the nightly job share.

    factory = AdapterFactory(get_generator(objects, recipe), encoder, config.sampling)
    artifacts = factory.generate([Condition(prompt, base, probes, lora)], seeds=[0])
    artifact = factory.artifact(factory.sample([condition], [0])[0], condition, 0)  # its halves, in the service
    digest = factory.stream(condition, seed=0, folder=Path("big-adapter"))     # never held in memory

Letters: B adapters, L tokens, D token dim.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout, AdapterSlot
from oral_ray.adapters.tokens import factors_of, positions, slot_mask, slot_positions, token_mask
from oral_ray.adapters.writer import AdapterWriter
from oral_ray.config import RegressionObjective, SamplingConfig, canonical_json, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.condition import Condition, ConditionEncoder
from oral_ray.generator.model import Generator
from oral_ray.generator.network import Network
from oral_ray.generator.pieces import NoiseStream, Piece, sample_pieces
from oral_ray.version import code_version

PIECE_TOKENS = 2048  # 2-core EPYC: larger pieces leave the cache, smaller ones pay for calls (docs/scale.md)
_TOGETHER = {"batch_size", "max_batch_tokens"}  # how many are sampled at once is nothing of one adapter


def settled(sampling: SamplingConfig, determinism: bool) -> SamplingConfig:
    """The sampling to use: under determinism one adapter at a time, so that a batch cannot change a bit."""
    return sampling.model_copy(update={"batch_size": 1}) if determinism else sampling


class AdapterFactory:
    """A generator with its condition encoder, ready to sample.

    Every adapter draws from its own stream, so a batch changes a sample only by float rounding; `batch_size = 1` (what
    `determinism` sets) removes that too.
    """

    def __init__(
        self, generator: Generator, encoder: ConditionEncoder, sampling: SamplingConfig, device: str = "cpu"
    ) -> None:
        spec = generator.spec
        if encoder.fingerprint != spec.text_encoder_fingerprint:
            raise GeneratorError(
                f"the generator was trained with text encoder {spec.text_encoder_fingerprint}, this one is "
                f"{encoder.fingerprint}; set condition.text_encoder to the one it was trained with"
            )
        self.generator, self.encoder, self.sampling = generator, encoder, sampling
        self._device = torch.device(device)
        generator.network.to(self._device).eval()

    def generate(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[AdapterArtifact]:
        """One artifact a condition, each from its own seed, in the order asked for."""
        sampled = self.sample(conditions, seeds)[::-1]
        return [self.artifact(sampled.pop(), *one) for one in zip(conditions, seeds, strict=True)]

    def sample(self, conditions: Sequence[Condition], seeds: Sequence[int]) -> list[Tensor]:
        """Normalised weight tokens [L, D] of each condition, on the CPU: the device's part of `generate`."""
        if len(seeds) != len(conditions):
            raise GeneratorError(f"{len(conditions)} conditions need as many seeds, got {len(seeds)}")
        layouts = [self.layout(condition) for condition in conditions]
        found: dict[int, Tensor] = {}
        for chosen in self._batches(layouts):
            if layouts[chosen[0]].num_tokens > self.sampling.max_batch_tokens:  # then it is alone
                [i] = chosen
                found[i] = torch.cat([tokens_LD for _, tokens_LD in self._pieces(conditions[i], layouts[i], seeds[i])])
            else:
                tokens = self._sample(
                    [conditions[i] for i in chosen], [layouts[i] for i in chosen], [seeds[i] for i in chosen]
                )
                found |= zip(chosen, tokens, strict=True)
        return [found[i] for i in range(len(conditions))]

    def artifact(self, tokens_LD: Tensor, condition: Condition, seed: int) -> AdapterArtifact:
        """The adapter that sampled tokens are: the rest of `generate`, which takes many small steps and no device."""
        layout = self.layout(condition)
        factors = factors_of(self._rows(layout.slots, tokens_LD, layout))
        return build_artifact(factors, layout, self._provenance(condition, seed))

    def stream(self, condition: Condition, seed: int, folder: Path) -> str:
        """Write one adapter of any size into a folder as it is sampled, and return its digest.

        The same adapter as `generate` makes, up to rounding (and exactly, where `generate` samples in pieces too).
        """
        layout = self.layout(condition)
        with AdapterWriter(folder, layout, self._provenance(condition, seed)) as writer:
            for slot, rows in self._slots(condition, layout, seed):
                writer.write(slot, rows)
        return writer.digest

    def _slots(self, condition: Condition, layout: AdapterLayout, seed: int) -> Iterator[tuple[AdapterSlot, Tensor]]:
        for group, tokens_LD in self._pieces(condition, layout, seed):
            yield from self._rows(group, tokens_LD, layout)

    def _rows(
        self, slots: Sequence[AdapterSlot], tokens_LD: Tensor, layout: AdapterLayout
    ) -> Iterator[tuple[AdapterSlot, Tensor]]:
        """Consecutive slots with their values as rank rows [r, width], from their normalised tokens."""
        counts = [layout.lora.r * slot.chunks for slot in slots]
        for slot, own_LD in zip(slots, tokens_LD.split(counts), strict=True):
            yield slot, self.generator.token_stats.slot_rows(own_LD, layout, slot)

    def _pieces(
        self, condition: Condition, layout: AdapterLayout, seed: int
    ) -> Iterator[tuple[list[AdapterSlot], Tensor]]:
        """Consecutive whole slots with their normalised tokens, sampled a piece at a time."""
        network = self.generator.network
        if not isinstance(network, Network):
            raise GeneratorError("a latent generator cannot sample in pieces; use the per-token generator")
        text_1E, model_1G = self._encode([condition])
        noise = NoiseStream(_rng(condition, seed), layout.num_tokens, layout.token_dim)
        groups = list(_groups(layout, PIECE_TOKENS))
        pieces = (
            Piece(
                torch.cat([slot_positions(layout, slot) for slot in group]),
                torch.cat([slot_mask(layout, slot) for slot in group]),
                noise.take(sum(layout.lora.r * slot.chunks for slot in group)),
            )
            for group in groups
        )
        sampled = sample_pieces(network, pieces, text_1E, model_1G, self.sampling)
        for group, tokens_LD in zip(groups, sampled, strict=True):
            yield group, tokens_LD.cpu()

    def _provenance(self, condition: Condition, seed: int) -> Provenance:
        is_regression = isinstance(self.generator.spec.generator.objective, RegressionObjective)
        return Provenance(
            origin="regression" if is_regression else "generated",
            base=condition.base.id,
            base_fingerprint=condition.base.fingerprint,
            prompt=condition.prompt,
            seed=seed,
            generator=self.generator.spec.recipe,
            sampling=canonical_json(self.sampling.model_dump(mode="json", exclude=_TOGETHER)),
            code_version=code_version(),
        )

    def _encode(self, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor]:
        """c_text [B, E] and c_model [B, G]."""
        stats = self.generator.probe_stats
        text_BE = self.encoder.encode_prompts([condition.prompt for condition in conditions], len(conditions))
        bases: dict[tuple[str, int], Tensor] = {}  # most adapters of a batch are for few bases
        for c in conditions:
            if (key := (c.base.fingerprint, id(c.probes))) not in bases:
                bases[key] = self.encoder.encode_base(c.base, c.probes, stats)
        model_BG = torch.stack([bases[c.base.fingerprint, id(c.probes)] for c in conditions])
        return text_BE.to(self._device), model_BG.to(self._device)

    def layout(self, condition: Condition) -> AdapterLayout:
        """The layout of what a condition asks for."""
        return AdapterLayout.of(condition.base.spec, condition.lora, self.generator.spec.token_dim)

    def _batches(self, layouts: Sequence[AdapterLayout]) -> list[list[int]]:
        """Indices grouped so that no padded batch exceeds `max_batch_tokens`; longest together."""
        batches: list[list[int]] = []
        for i in sorted(range(len(layouts)), key=lambda i: -layouts[i].num_tokens):
            longest = layouts[batches[-1][0]].num_tokens if batches else 0
            full = not batches or (len(batches[-1]) + 1) * longest > self.sampling.max_batch_tokens
            full = full or len(batches[-1]) >= self.sampling.batch_size
            batches.append([i]) if full else batches[-1].append(i)
        return batches

    def _sample(
        self, conditions: Sequence[Condition], layouts: Sequence[AdapterLayout], seeds: Sequence[int]
    ) -> list[Tensor]:
        """Normalised tokens [L, D] of each adapter of one batch."""
        longest, token_dim = max(layout.num_tokens for layout in layouts), layouts[0].token_dim
        rngs = [_rng(condition, seed) for seed, condition in zip(seeds, conditions, strict=True)]

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


def _rng(condition: Condition, seed: int) -> torch.Generator:
    """The adapter's own stream of noise."""
    return torch.Generator().manual_seed(derive_seed(seed, "sample", condition.base.fingerprint, condition.prompt))


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
