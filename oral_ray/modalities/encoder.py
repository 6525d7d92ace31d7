"""Sentence encoders: an answer is the label whose embedding is nearest to the text's.

The logit of a label is the cosine between the mean-pooled, normalised text and the label's embedding by the bare base,
over a temperature of 0.05.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oral_ray.errors import TaskError
from oral_ray.modalities.choosing import LabelChoice
from oral_ray.modalities.kind import model_class_of
from oral_ray.modalities.metrics import ACCURACY
from oral_ray.modalities.protocol import Batch, Modality, TaskReader, Tokens
from oral_ray.modalities.text import PROBE_TEXT, check_answers, encode, label_indices, label_tokens, text_limit
from oral_ray.tasks.task import Example

TEMPERATURE = 0.05


class Encoder(Modality):
    """Sentence encoders of any family that `AutoModel` loads."""

    name = "encoder"
    noun = "language model"
    auto_class = "AutoModel"
    heads_may_lie = True
    embeds_text = True
    metrics = (ACCURACY,)

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """Whatever no other kind claims: a masked language model and a classifier are encoders with a head."""
        return own is not None

    def build_options(self, own: Any, tensors: Iterable[str]) -> dict[str, Any]:
        """Nothing here reads a pooler: a checkpoint without one is built without it, instead of with a random one."""
        model_class = model_class_of(self.auto_class, own)
        if model_class is None or any(re.search(r"(^|\.)pooler\.", name) for name in tensors):
            return {}
        takes_it = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        return {"add_pooling_layer": False} if takes_it else {}

    @torch.no_grad()
    def check(self, model: nn.Module, processor: Any) -> None:
        """BaseModelError where the model cannot read a text."""
        tokens = encode(processor, [PROBE_TEXT])
        check_answers(processor, tokens, embed(model, tokens))

    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """TaskError where two labels are the same token by token (capitals, characters that the vocabulary lacks)."""
        rows = label_tokens(processor, labels)
        if len({tuple(row) for row in rows}) < len(rows):
            raise TaskError(
                f"labels {tuple(labels)} have one that is, token by token, the same as another in this model's "
                "vocabulary; rename one of them"
            )

    def reader(self, model: nn.Module, processor: Any, labels: Sequence[str]) -> TaskReader:
        """The reader of a task with labels; TaskError for free text, which an encoder cannot write."""
        if not labels:
            raise TaskError("an encoder cannot write free text; give the task labels or take a causal language model")
        self.check_labels(processor, labels)
        with torch.no_grad():
            return EncoderReader(processor, tuple(labels), embed(model, encode(processor, labels)), text_limit(model))


@dataclass(frozen=True, slots=True)
class EncoderReader(LabelChoice):
    """Cosine to frozen label embeddings `label_KH` (normalised rows)."""

    tokenizer: Any
    labels: tuple[str, ...]
    label_KH: Tensor
    max_tokens: int

    def read(self, examples: Sequence[Example]) -> Batch:
        tokens = encode(self.tokenizer, [example.text for example in examples], max_tokens=self.max_tokens)
        return Batch(tokens, label_indices(self.labels, examples)).to(self.label_KH.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, K] of the labels."""
        return embed(model, batch.tokens) @ self.label_KH.T / TEMPERATURE

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        return batch


def embed(model: nn.Module, tokens: Tokens) -> Tensor:
    """Mean-pooled, normalised sentence embeddings [B, H], on the device of the model."""
    device = next(model.parameters()).device
    tokens = {name: value.to(device) for name, value in tokens.items()}
    hidden_BTH = model(**tokens).last_hidden_state
    mask_BT1 = tokens["attention_mask"].unsqueeze(-1).to(hidden_BTH.dtype)
    return nn.functional.normalize((hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1), dim=-1)
