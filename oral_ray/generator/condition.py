"""Prompt and base -> c = [c_text ; c_model], what the generator is told (ORAL, arXiv 2503.24354, section 3.2).

c_text: frozen sentence embedding of the prompt. c_model: embedding of the base's metadata sentence, and the base's
weight probes in the principal components of the versions of that architecture in the corpus. A metadata sentence is the
same for all versions of one architecture, so alone it cannot see what changed.

Letters: B conditions, E embedding size, F probe numbers of a base, C components, S seen versions.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oral_ray.bases.catalog import BaseRecord, describe_base
from oral_ray.bases.loading import load_folder, model_folder
from oral_ray.bases.sources import SourceFolder
from oral_ray.config import ConditionConfig, derive_seed
from oral_ray.errors import ConditionError
from oral_ray.modalities import kind_named
from oral_ray.modalities.encoder import embed
from oral_ray.modalities.text import encode

MAX_PROMPT_CHARS = 1000
PROMPT_TOKENS = 256
_BLANKS = frozenset(
    "\u115f\u1160\u3164\uffa0\u2800\U0001d159"
)  # Hangul fillers, the empty Braille cell, a null notehead
MAX_KNOWN = 16384  # embeddings that an encoder remembers, 25 MB at 384 numbers


def check_prompt(prompt: str) -> str:
    """The prompt itself; ConditionError when it is no text, empty, invisible or too long."""
    if not isinstance(prompt, str) or any("\ud800" <= char <= "\udfff" for char in prompt[: MAX_PROMPT_CHARS + 1]):
        raise ConditionError(f"prompt {ascii(prompt)[:80]} is no Unicode text; describe the task in a sentence")
    if not prompt.strip():
        raise ConditionError(
            "prompt is empty; describe the task in a sentence, such as 'classify mails as spam or not'"
        )
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ConditionError(f"prompt has {len(prompt)} characters, at most {MAX_PROMPT_CHARS} are read; shorten it")
    if not any(map(_is_visible, prompt)):
        raise ConditionError(
            f"prompt has only characters that show nothing by themselves: {_code_points(prompt)}; "
            "describe the task in a sentence, such as 'classify mails as spam or not'"
        )
    return prompt


def _is_visible(char: str) -> bool:
    """Whether a character alone tells a reader something: a letter, digit, sign or symbol that is no blank."""
    return unicodedata.category(char)[0] in "LNPS" and char not in _BLANKS


def _code_points(text: str) -> str:
    """The first few different characters of a text that are no space, by code point and name."""
    shown = [char for char in dict.fromkeys(text) if not char.isspace()]
    names = [f"U+{ord(char):04X} {unicodedata.name(char, 'without a name').lower()}" for char in shown[:4]]
    return ", ".join(names) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


@dataclass(frozen=True, slots=True)
class ProbeStats:
    """Per architecture digest: mean [F], principal axes [F, C], spread [C] of the seen versions' probes."""

    mean: dict[str, Tensor]
    axes: dict[str, Tensor]
    spread: dict[str, Tensor]

    def project(self, architecture: str, probes: Mapping[str, Tensor], num_components: int) -> Tensor:
        """Coordinates [num_components] of a version, 1 = one standard deviation; zero for an unknown architecture."""
        coordinates = torch.zeros(num_components)
        if architecture in self.mean:
            found = (_flat(probes) - self.mean[architecture]) @ self.axes[architecture] / self.spread[architecture]
            coordinates[: len(found)] = found
        return coordinates


def fit_probe_stats(seen: Sequence[tuple[str, Mapping[str, Tensor]]], num_components: int) -> ProbeStats:
    """Principal components of (architecture digest, probes) of the seen versions, an architecture at a time."""
    stats = ProbeStats({}, {}, {})
    for architecture in sorted({digest for digest, _ in seen}):
        flat_SF = torch.stack([_flat(probes) for digest, probes in seen if digest == architecture]).double()
        mean_F = flat_SF.mean(0)
        _, s, vh = torch.linalg.svd(flat_SF - mean_F, full_matrices=False)
        # equal versions span no axis: what little is left there is rounding, and must not be scaled up
        rank = min(num_components, int((s > 1e-6 * flat_SF.norm()).sum()))
        axes_FC = vh[:rank].T
        # the sign of a principal axis is arbitrary: make its largest entry positive
        peak = axes_FC.gather(0, axes_FC.abs().argmax(0, keepdim=True)).squeeze(0) if rank else axes_FC.new_zeros(0)
        axes_FC = axes_FC * torch.where(peak < 0, -1.0, 1.0)
        spread_C = ((flat_SF - mean_F) @ axes_FC).square().mean(0).sqrt().clamp(min=1e-12)
        stats.mean[architecture], stats.axes[architecture] = mean_F.float(), axes_FC.float()
        stats.spread[architecture] = spread_C.float()
    return stats


def _flat(probes: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([probes[name].flatten() for name in sorted(probes)])


class ConditionEncoder:
    """Embeds prompts and bases; the text encoder is frozen and named by source and fingerprint."""

    def __init__(self, config: ConditionConfig) -> None:
        self.config = config
        with model_folder(config.text_encoder) as folder:
            record = describe_base(SourceFolder(folder), "", "text-encoder")
            if not kind_named(record.spec.kind).embeds_text:
                raise ConditionError(f"condition.text_encoder {config.text_encoder!r} is no sentence encoder")
            self._model, self._tokenizer = load_folder(folder, record.spec.kind)
        self.fingerprint = record.fingerprint
        self.text_dim = record.spec.hidden_size
        self.model_dim = self.text_dim + config.num_components
        self._known: dict[str, Tensor] = {}

    def encode_prompts(self, prompts: Sequence[str], batch_size: int = 1) -> Tensor:
        """c_text [B, E] of checked prompts, entries of order one.

        More than one text at a time is faster, and changes float rounding.
        """
        if self.config.text == "random":
            return torch.stack([_random(f"prompt/{prompt}", self.text_dim) for prompt in prompts])
        return self._embed(prompts, batch_size)

    def encode_base(self, base: BaseRecord, probes: Mapping[str, Tensor], stats: ProbeStats) -> Tensor:
        """c_model [E + C], entries of order one."""
        if self.config.model == "random":
            return _random(f"base/{base.fingerprint}", self.model_dim)
        coordinates = torch.zeros(self.config.num_components)
        if self.config.model == "probes":
            coordinates = stats.project(base.spec.digest, probes, self.config.num_components)
        return torch.cat([self._embed([base.spec.metadata])[0], coordinates])

    def _embed(self, texts: Sequence[str], batch_size: int = 1) -> Tensor:
        """[B, E]; texts that were embedded lately are not embedded again."""
        known = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for first in range(0, len(new), batch_size):
            some = new[first : first + batch_size]
            with torch.no_grad():
                rows_BE = embed(self._model, encode(self._tokenizer, some, max_tokens=PROMPT_TOKENS))
            known |= zip(some, rows_BE * self.text_dim**0.5, strict=True)
        self._known |= known
        while len(self._known) > MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        return torch.stack([known[text] for text in texts])


def _random(name: str, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(derive_seed(0, "random-condition", name)))
