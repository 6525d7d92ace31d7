"""Causal language models: they read `text + "\\nAnswer:"` and answer with the next tokens.

A task with labels: the logit of each label's first token. Free text (no labels): the logits of every token of the answer
and of the token that ends it; the answer is right when each of them is the most likely one, which is when greedy decoding
writes exactly that answer.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.errors import BaseModelError, TaskError
from oral_ray.modalities.choosing import ChoosingReader, LabelChoice
from oral_ray.modalities.kind import loads
from oral_ray.modalities.metrics import ACCURACY, Metric
from oral_ray.modalities.protocol import Batch, Modality, TaskReader
from oral_ray.modalities.text import (
    PROBE_TEXT,
    check_answers,
    encode,
    encoded,
    label_indices,
    label_tokens,
    padded,
    text_limit,
)
from oral_ray.tasks.task import ANSWER, Example

MAX_ANSWER_TOKENS = 48
_SKIPPABLE = ("llama", "mistral", "qwen2")  # nothing happens to a token's embedding before the first layer


class Causal(Modality):
    """Causal language models of any family that `AutoModelForCausalLM` loads."""

    name = "causal"
    noun = "language model"
    auto_class = "AutoModelForCausalLM"
    writes_text = True
    metrics = (ACCURACY,)

    def claims(self, config: Mapping[str, Any], own: Any) -> bool:
        """By the class that loads it. Types of both kinds (BERT's family) read both ways unless they say they decode."""
        if own is None or not loads(self.auto_class, own):
            return False
        return not loads("AutoModelForMaskedLM", own) or config.get("is_decoder") is True

    @torch.no_grad()
    def check(self, model: nn.Module, processor: Any) -> None:
        """BaseModelError where the model cannot read a text, or its logits are not those that answers are made of."""
        tokens = encode(processor, [PROBE_TEXT])
        where_BT = torch.ones_like(tokens["input_ids"], dtype=torch.bool)
        logits_PK = _next_token_logits(model, Batch(tokens, torch.empty(0), where_BT), None)
        check_answers(processor, tokens, logits_PK)
        whole_PK = model(**tokens).logits[0].float()
        difference = float((logits_PK - whole_PK).abs().max())
        if difference > 1e-3 * max(1.0, float(whole_PK.abs().max())):
            raise BaseModelError(
                f"a {type(model).__name__} makes its logits in a way that is not known here (they differ by "
                f"{difference:.3g} from its output layer's); take a base of another family"
            )

    def check_labels(self, processor: Any, labels: Sequence[str]) -> None:
        """TaskError where two labels start with one token: it is what a label is chosen by."""
        _first_tokens(processor, labels)

    def reader(self, model: nn.Module, processor: Any, labels: Sequence[str]) -> TaskReader:
        """The reader of a task; TaskError where two labels start with one token."""
        device = next(model.parameters()).device
        if not labels:
            return FreeTextReader(processor, device, text_limit(model, MAX_ANSWER_TOKENS))
        tokens = torch.tensor(_first_tokens(processor, labels), device=device)
        return LabelReader(processor, tuple(labels), tokens, text_limit(model))


@dataclass(frozen=True, slots=True)
class LabelReader(LabelChoice):
    """Next-token logits at the last token of the text, for the labels' first tokens `label_token_K`."""

    tokenizer: Any
    labels: tuple[str, ...]
    label_token_K: Tensor
    max_tokens: int

    def read(self, examples: Sequence[Example]) -> Batch:
        tokens = encode(self.tokenizer, [example.text for example in examples], ANSWER, self.max_tokens)
        last_B = tokens["attention_mask"].sum(1) - 1
        where_BT = torch.arange(tokens["input_ids"].shape[1]) == last_B[:, None]
        return Batch(tokens, label_indices(self.labels, examples), where_BT).to(self.label_token_K.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, K] of the labels."""
        return _next_token_logits(model, batch, self.label_token_K)

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        return skip_layers(model, batch, first_layer)


@dataclass(frozen=True, slots=True)
class FreeTextReader(ChoosingReader):
    """Next-token logits over the whole vocabulary at every token of a free answer."""

    tokenizer: Any
    device: torch.device
    max_tokens: int

    @property
    def metric(self) -> Metric:
        return ACCURACY

    def read(self, examples: Sequence[Example]) -> Batch:
        asked = encoded(self.tokenizer, [example.text for example in examples], ANSWER, self.max_tokens)
        answers = [self._answer(example.label) for example in examples]
        rows = [torch.tensor(ask + answer[:-1]) for ask, answer in zip(asked, answers, strict=True)]
        where = [torch.arange(len(row)) >= len(row) - len(answer) for row, answer in zip(rows, answers, strict=True)]
        return Batch(
            padded(self.tokenizer, rows),
            torch.tensor([token for answer in answers for token in answer]),
            nn.utils.rnn.pad_sequence(where, batch_first=True),
        ).to(self.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [P, K] of the vocabulary at every token of every answer."""
        return _next_token_logits(model, batch, None)

    def prior(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """Zero: free text is not calibrated."""
        return torch.zeros(())

    def values(self, model: nn.Module, batch: Batch, prior: Tensor | None = None) -> list[float]:
        return _all_right(self.logits(model, batch).log_softmax(-1), batch)

    def skip_layers(self, model: nn.Module, batch: Batch, first_layer: int) -> Batch:
        return skip_layers(model, batch, first_layer)

    def _answer(self, text: str) -> list[int]:
        [tokens] = label_tokens(self.tokenizer, [text], " ", ANSWER)
        if len(tokens) > MAX_ANSWER_TOKENS:
            raise TaskError(f"answer {text[:60]!r} has {len(tokens)} tokens, at most {MAX_ANSWER_TOKENS}; shorten it")
        return [*tokens, self.tokenizer.eos_token_id]


@torch.no_grad()
def skip_layers(model: nn.Module, batch: Batch, first_layer: int) -> Batch:
    """The batch with everything below `first_layer` computed, so that it need not be for each of many adapters above.

    Exact; a model that does more than layers (embeddings that are scaled, layers of several kinds) gets its batch back.
    """
    body = _body(model)
    if first_layer == 0 or body.config.model_type not in _SKIPPABLE:
        return batch
    norm = body.norm
    with _layers(body, slice(0, first_layer)):
        body.norm = nn.Identity()
        try:
            states_BTH = body(**batch.tokens, use_cache=False).last_hidden_state
        finally:
            body.norm = norm
    tokens = {"inputs_embeds": states_BTH, "attention_mask": batch.tokens["attention_mask"]}
    return dataclasses.replace(batch, tokens=tokens, first_layer=first_layer)


def _first_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """The first token of every label behind the question; TaskError where two labels share it."""
    tokens = [row[0] for row in label_tokens(tokenizer, labels, " ", ANSWER)]
    if len(set(tokens)) < len(tokens):
        raise TaskError(f"labels {tuple(labels)} share a first token in this model's vocabulary; rename one of them")
    return tokens


def _all_right(log_probs_PK: Tensor, batch: Batch) -> list[float]:
    """1 where the most likely choice is the right one at every position of an example, else 0; by example."""
    assert batch.where_BT is not None
    right_P = (log_probs_PK.argmax(-1) == batch.wanted_P).cpu()
    example_P = batch.where_BT.cpu().nonzero()[:, 0]
    right_B = torch.ones(len(batch.where_BT), dtype=torch.int).scatter_reduce(0, example_P, right_P.int(), "amin")
    return right_B.float().tolist()


def _next_token_logits(model: nn.Module, batch: Batch, rows_K: Tensor | None) -> Tensor:
    """Logits [P, K] at the marked positions; only the rows of the choices, only where they are asked for."""
    body = _body(model)
    with _layers(body, slice(batch.first_layer, None)) if batch.first_layer else contextlib.nullcontext():
        states_BTH = body(**batch.tokens, use_cache=False).last_hidden_state
    output = model.get_output_embeddings()  # type: ignore[operator]
    weight_KH = output.weight if rows_K is None else output.weight[rows_K]
    bias = getattr(output, "bias", None)
    bias_K = bias if bias is None or rows_K is None else bias[rows_K]
    logits_PK = F.linear(states_BTH[batch.where_BT], weight_KH, bias_K).float() * _logit_scale(body.config)
    cap = getattr(body.config, "final_logit_softcapping", None)
    return logits_PK if cap is None else cap * torch.tanh(logits_PK / cap)


def _logit_scale(config: Any) -> float:
    """What a model multiplies its logits by (Granite divides, Cohere and Falcon-H1 multiply); 1 for most."""
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    return 1.0 / divisor if divisor else factor or 1.0


def _body(model: nn.Module) -> Any:
    """The transformer below the output layer; peft changes it in place, so an adapter is active in it."""
    plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return plain.base_model


@contextlib.contextmanager
def _layers(body: Any, part: slice) -> Iterator[None]:
    layers = body.layers
    body.layers = layers[part]
    try:
        yield
    finally:
        body.layers = layers
