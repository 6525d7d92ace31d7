"""AdapterFactory: from conditions and seeds to artifacts. THE one path that serving and the nightly job share.

    factory = AdapterFactory(get_generator(objects, recipe), encoder, config.sampling)
    artifacts = factory.generate([Condition(prompt, base, probes, lora)], seeds=[0])

Letters: B adapters, L tokens, D token dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from oral_ray import __version__
from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import detokenize, positions, token_mask
from oral_ray.config import SamplingConfig, canonical_json, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.condition import Condition, ConditionEncoder
from oral_ray.generator.model import Generator


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

    def generate(
        self, conditions: Sequence[Condition], seeds: Sequence[int], origin: str = "generated", task: str = ""
    ) -> list[AdapterArtifact]:
        """One artifact a condition, each from its own seed, in the order asked for."""
        if len(seeds) != len(conditions):
            raise GeneratorError(f"{len(conditions)} conditions need as many seeds, got {len(seeds)}")
        layouts = [self.layout(condition) for condition in conditions]
        artifacts: list[AdapterArtifact | None] = [None] * len(conditions)
        for chosen in self._batches(layouts):
            tokens = self._sample(
                [conditions[i] for i in chosen], [layouts[i] for i in chosen], [seeds[i] for i in chosen]
            )
            for i, tokens_LD in zip(chosen, tokens, strict=True):
                factors = detokenize(self.generator.token_stats.denormalize(tokens_LD, layouts[i]), layouts[i])
                provenance = Provenance(
                    origin=origin,
                    base=conditions[i].base.id,
                    base_fingerprint=conditions[i].base.fingerprint,
                    task=task,
                    prompt=conditions[i].prompt,
                    seed=seeds[i],
                    generator=self.generator.spec.recipe,
                    sampling=canonical_json(self.sampling),
                    code_version=__version__,
                )
                artifacts[i] = build_artifact(factors, layouts[i], provenance)
        return [artifact for artifact in artifacts if artifact is not None]

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
        rngs = [
            torch.Generator().manual_seed(derive_seed(seed, "sample", condition.base.fingerprint, condition.prompt))
            for seed, condition in zip(seeds, conditions, strict=True)
        ]

        def draw_noise() -> Tensor:
            noise_BLD = torch.zeros(len(layouts), longest, token_dim)
            for i, (layout, rng) in enumerate(zip(layouts, rngs, strict=True)):
                noise_BLD[i, : layout.num_tokens] = torch.randn(layout.num_tokens, token_dim, generator=rng)
            return noise_BLD.to(self._device)

        position_BLP = torch.stack([_padded(positions(layout), longest) for layout in layouts])
        mask_BLD = torch.stack([_padded(token_mask(layout), longest) for layout in layouts])
        text_BE = self.encoder.encode_prompts([condition.prompt for condition in conditions])
        stats = self.generator.probe_stats
        model_BG = torch.stack([self.encoder.encode_base(c.base, c.probes, stats) for c in conditions])
        tokens_BLD = self.generator.network.sample(
            position_BLP.to(self._device),
            mask_BLD.to(self._device),
            text_BE.to(self._device),
            model_BG.to(self._device),
            draw_noise,
            self.sampling,
        )
        return [tokens_BLD[i, : layout.num_tokens].cpu() for i, layout in enumerate(layouts)]


def _padded(rows_LX: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows_LX, (0, 0, 0, length - len(rows_LX)))
