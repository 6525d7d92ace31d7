"""How a model answers a task, differentiable, the same code in training and in evaluation.

Encoders: cosine between the mean-pooled, normalised text and frozen label embeddings, over a temperature of 0.05.
Causal language models read `text + "\\nAnswer:"`. A task with labels: the logit of each label's first token. A task of
free text (no labels): the logits of every token of the answer and of the token that ends it; the answer is right when
each of them is the most likely one, which is when greedy decoding writes exactly that answer.

Letters: B texts, T text tokens, H hidden size, K choices (labels, or the vocabulary), P answered positions.

    head = build_head("causal", model, tokenizer, task.labels)
    batch = head.read(task.examples("train")[:8])
    loss = F.cross_entropy(head.logits(model, batch), batch.wanted_P)
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.errors import TaskError
from oral_ray.tasks.labels import check_labels
from oral_ray.tasks.task import ANSWER, Example

TextBatch = dict[str, Tensor]
TEMPERATURE = 0.05
MAX_TEXT_TOKENS = 256
MAX_ANSWER_TOKENS = 48
_ENTERED_BY_STATES = ("llama", "mistral", "qwen2")  # nothing happens to a token's embedding before the first layer


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as a model reads them: `wanted_P` are the right choices, `where_BT` marks the positions that make them.

    Pooled answers of an encoder have one position a text and no `where_BT`. After `enter` the tokens are the hidden
    states before layer `first_layer`.
    """

    tokens: TextBatch
    wanted_P: Tensor
    where_BT: Tensor | None = None
    first_layer: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return dataclasses.replace(
            self,
            tokens={name: value.to(device) for name, value in self.tokens.items()},
            wanted_P=self.wanted_P.to(device),
            where_BT=None if self.where_BT is None else self.where_BT.to(device),
        )


class Head(Protocol):
    """Reads examples and gives the logits of their answers; built from the bare base, so adapters cannot move labels.

    Batches are on the device of the base.
    """

    def read(self, examples: Sequence[Example]) -> Batch: ...
    def logits(self, model: nn.Module, batch: Batch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class EncoderHead:
    """Cosine to frozen label embeddings `label_KH` (normalised rows)."""

    tokenizer: Any
    labels: tuple[str, ...]
    label_KH: Tensor

    def read(self, examples: Sequence[Example]) -> Batch:
        tokens = encode(self.tokenizer, [example.text for example in examples])
        return Batch(tokens, _label_indices(self.labels, examples)).to(self.label_KH.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return embed(model, batch.tokens) @ self.label_KH.T / TEMPERATURE


@dataclass(frozen=True, slots=True)
class CausalHead:
    """Next-token logits at the last token of the text, for the labels' first tokens."""

    tokenizer: Any
    labels: tuple[str, ...]
    label_token_K: Tensor

    def read(self, examples: Sequence[Example]) -> Batch:
        tokens = encode(self.tokenizer, [example.text for example in examples], ANSWER)
        last_B = tokens["attention_mask"].sum(1) - 1
        where_BT = torch.arange(tokens["input_ids"].shape[1]) == last_B[:, None]
        return Batch(tokens, _label_indices(self.labels, examples), where_BT).to(self.label_token_K.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return _next_token_logits(model, batch, self.label_token_K)


@dataclass(frozen=True, slots=True)
class TextHead:
    """Next-token logits over the whole vocabulary at every token of a free answer."""

    tokenizer: Any
    device: torch.device

    def read(self, examples: Sequence[Example]) -> Batch:
        asked = _encoded(self.tokenizer, [example.text for example in examples], ANSWER, MAX_TEXT_TOKENS)
        answers = [self._answer(example.label) for example in examples]
        rows = [torch.tensor(ask + answer[:-1]) for ask, answer in zip(asked, answers, strict=True)]
        where = [torch.arange(len(row)) >= len(row) - len(answer) for row, answer in zip(rows, answers, strict=True)]
        return Batch(
            _padded(self.tokenizer, rows),
            torch.tensor([token for answer in answers for token in answer]),
            nn.utils.rnn.pad_sequence(where, batch_first=True),
        ).to(self.device)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return _next_token_logits(model, batch, None)

    def _answer(self, text: str) -> list[int]:
        tokens = self.tokenizer.encode(f" {text}", add_special_tokens=False)
        if len(tokens) > MAX_ANSWER_TOKENS:
            raise TaskError(f"answer {text[:60]!r} has {len(tokens)} tokens, at most {MAX_ANSWER_TOKENS}; shorten it")
        return [*tokens, self.tokenizer.eos_token_id]


def build_head(kind: str, model: nn.Module, tokenizer: Any, labels: Sequence[str]) -> Head:
    """The head of a task on a bare base model of kind `encoder` or `causal`, for free text where there are no labels.

    Raises TaskError where the model cannot tell two labels apart (`labels.check_labels`), and for free text on an encoder.
    """
    if kind == "encoder":
        if not labels:
            raise TaskError("an encoder cannot write free text; give the task labels or take a causal language model")
        check_labels(kind, tokenizer, labels)
        with torch.no_grad():
            return EncoderHead(tokenizer, tuple(labels), embed(model, encode(tokenizer, labels)))
    device = next(model.parameters()).device
    if not labels:
        return TextHead(tokenizer, device)
    tokens = check_labels(kind, tokenizer, labels)
    return CausalHead(tokenizer, tuple(labels), torch.tensor(tokens, device=device))


def encode(tokenizer: Any, texts: Sequence[str], suffix: str = "", max_tokens: int = MAX_TEXT_TOKENS) -> TextBatch:
    """Tokenise texts, right-padded, cut to `max_tokens` (the suffix is never cut)."""
    if suffix:
        return _padded(tokenizer, [torch.tensor(row) for row in _encoded(tokenizer, texts, suffix, max_tokens)])
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_tokens, padding_side="right",
        return_tensors="pt",
    )  # fmt: skip
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def embed(model: nn.Module, batch: TextBatch) -> Tensor:
    """Mean-pooled, normalised sentence embeddings [B, H], on the device of the model."""
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    hidden_BTH = model(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"].unsqueeze(-1).to(hidden_BTH.dtype)
    return nn.functional.normalize((hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1), dim=-1)


@torch.no_grad()
def enter(model: nn.Module, batch: Batch, first_layer: int) -> Batch:
    """The batch with everything below `first_layer` computed, so that it need not be for each of many adapters above.

    Exact; a model that does more than layers (embeddings that are scaled, layers of several kinds) gets its batch back.
    """
    body = _body(model)
    if first_layer == 0 or body.config.model_type not in _ENTERED_BY_STATES:
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


def batches(
    head: Head, tokenizer: Any, examples: Sequence[Example], size: int = 16
) -> Iterator[tuple[list[int], Batch]]:
    """Examples by length in batches, each with the examples' indices: small ones of equal length beat large ones on a
    CPU (`oral-ray bench score`)."""
    lengths = num_tokens(tokenizer, [example.text for example in examples])
    order = sorted(range(len(examples)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, head.read([examples[i] for i in chosen])


def num_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The length of each text as the model reads it, to batch like with like: padding is computed too."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=MAX_TEXT_TOKENS)["input_ids"]]


def right_answers(log_probs_PK: Tensor, batch: Batch) -> list[bool]:
    """Whether the most likely choice is the right one at every position of an example, by example."""
    right_P = (log_probs_PK.argmax(-1) == batch.wanted_P).cpu()
    if batch.where_BT is None:
        return right_P.tolist()
    example_P = batch.where_BT.cpu().nonzero()[:, 0]
    right_B = torch.ones(len(batch.where_BT), dtype=torch.int).scatter_reduce(0, example_P, right_P.int(), "amin")
    return right_B.bool().tolist()


def _next_token_logits(model: nn.Module, batch: Batch, rows_K: Tensor | None) -> Tensor:
    """Logits [P, K] at the marked positions; only the rows of the choices, only where they are asked for."""
    body = _body(model)
    with _layers(body, slice(batch.first_layer, None)) if batch.first_layer else contextlib.nullcontext():
        states_BTH = body(**batch.tokens, use_cache=False).last_hidden_state
    output = model.get_output_embeddings()  # type: ignore[operator]
    weight_KH = output.weight if rows_K is None else output.weight[rows_K]
    logits_PK = F.linear(states_BTH[batch.where_BT], weight_KH).float()
    cap = getattr(body.config, "final_logit_softcapping", None)
    return logits_PK if cap is None else cap * torch.tanh(logits_PK / cap)


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


def _label_indices(labels: Sequence[str], examples: Sequence[Example]) -> Tensor:
    return torch.tensor([labels.index(example.label) for example in examples])


def _encoded(tokenizer: Any, texts: Sequence[str], suffix: str, max_tokens: int) -> list[list[int]]:
    tail = tokenizer.encode(suffix, add_special_tokens=False)
    return [
        row + tail for row in tokenizer(list(texts), truncation=True, max_length=max_tokens - len(tail))["input_ids"]
    ]


def _padded(tokenizer: Any, rows: Sequence[Tensor]) -> TextBatch:
    return {
        "input_ids": nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
