"""Scores: texts in any batch and order, only the logits that are asked for, free answers as greedy decoding writes them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factory_fixtures import ALL_ROLES, base_of, layout_of, toy_task, words_task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from oral_ray.adapters.lora import attached, train_adapter
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.config import CorpusConfig
from oral_ray.errors import BaseModelError, TaskError
from oral_ray.evaluation.scoring import example_values, majority_values
from oral_ray.modalities import ACCURACY, TaskReader, Values, batches, modality_of
from oral_ray.modalities import causal as causal_modality
from oral_ray.modalities.encoder import EncoderReader
from oral_ray.modalities.text import encode, label_tokens
from oral_ray.tasks import Example
from oral_ray.tasks.task import ANSWER

TEXTS = ["a dog", "the big cat eats bread", "is it gold or iron?", "b" * 40, "", "a dog runs to the big red tree " * 4]


@pytest.fixture(scope="module", params=["tiny_bert", "tiny_llama"])
def base(request: pytest.FixtureRequest) -> LoadedBase:
    return open_base(str(request.getfixturevalue(request.param)))


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> LoadedBase:
    return open_base(str(tiny_llama))


def test_texts_are_padded_on_the_right_and_cut_to_the_limit(base: LoadedBase):
    batch = encode(base.tokenizer, TEXTS, max_tokens=12)
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(TEXTS), 12)
    assert lengths.max() == 12
    assert all(mask[:length].all() for mask, length in zip(batch["attention_mask"], lengths, strict=True))


@given(
    text=st.text(max_size=40) | st.sampled_from(["€" * 30, "🦊" * 30, "a dog " * 30, "x\n" * 30]),
    room=st.integers(6, 20),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_suffix_is_never_cut(llama: LoadedBase, text: str, room: int):
    suffix = llama.tokenizer.encode(ANSWER, add_special_tokens=False)
    batch = encode(llama.tokenizer, [text, "a dog"], ANSWER, max_tokens=len(suffix) + room)
    for row, mask, source in zip(batch["input_ids"], batch["attention_mask"], (text, "a dog"), strict=True):
        assert row[mask.bool()].tolist() == llama.tokenizer(source)["input_ids"][:room] + suffix


def test_labels_that_start_with_one_token_are_refused_by_a_causal_model(llama: LoadedBase):
    with pytest.raises(TaskError, match=r"\('dog', 'dog house', 'cat'\) share a first token"):
        modality_of("causal").reader(llama.model, llama.tokenizer, ("dog", "dog house", "cat"))


@torch.no_grad()
def log_probs(base: LoadedBase, reader: Any, texts: Sequence[str], size: int = 16) -> Tensor:
    """Log-probabilities [N, K] in the order of the texts."""
    read = list(batches(reader, [Example(text=text, label="animal") for text in texts], size))
    rows = torch.cat([reader.logits(base.model, batch).log_softmax(-1) for _, batch in read])
    return rows[torch.tensor([i for chosen, _ in read for i in chosen]).argsort()]


def test_log_probabilities_do_not_depend_on_order_or_batch(base: LoadedBase):
    reader = modality_of(base.record.spec.kind).reader(base.model, base.tokenizer, ("animal", "plant", "gold"))
    together = log_probs(base, reader, TEXTS)
    assert together.shape == (len(TEXTS), 3)
    torch.testing.assert_close(together.exp().sum(1), torch.ones(len(TEXTS)))
    assert together.std(0).min() > 1e-4, "texts are told apart"
    order = [3, 0, 5, 1, 4, 2]
    shuffled = log_probs(base, reader, [TEXTS[i] for i in order], size=4)
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-5)
    alone = torch.cat([log_probs(base, reader, [text]) for text in TEXTS])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_a_label_is_its_own_best_answer_for_an_encoder(tiny_bert: Path):
    base = open_base(str(tiny_bert))
    labels = ("animal", "plant", "gold", "iron")
    reader = modality_of("encoder").reader(base.model, base.tokenizer, labels)
    assert log_probs(base, reader, labels).argmax(1).tolist() == [0, 1, 2, 3]


SIZES = {
    "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip


def causal_model(model_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES)).eval()


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("labels", [("animal", "plant"), ()])
def test_logits_are_those_of_the_whole_model_where_they_are_asked_for(
    llama: LoadedBase, model_type: str, labels: tuple[str, ...]
):
    model = causal_model(model_type)
    reader = modality_of("causal").reader(model, llama.tokenizer, labels)
    batch = reader.read(toy_task().examples("train")[:5])
    everything = model(**batch.tokens).logits[batch.where_BT]
    rows = [llama.tokenizer.encode(f" {label}", add_special_tokens=False)[0] for label in labels] or slice(None)
    torch.testing.assert_close(reader.logits(model, batch), everything[:, rows], atol=1e-5, rtol=1e-5)
    assert len(batch.wanted_P) == len(everything) and everything.std() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("first_layer", [0, 1, 3])
def test_skipping_layers_changes_nothing(llama: LoadedBase, model_type: str, first_layer: int):
    model = causal_model(model_type)
    names = [name for name, _ in model.named_modules()]
    reader = modality_of("causal").reader(model, llama.tokenizer, ())
    batch = reader.read(toy_task().examples("train")[:5])
    skipped = reader.skip_layers(model, batch, first_layer)
    assert skipped.first_layer == (first_layer if model_type in ("llama", "mistral", "qwen2") else 0)
    assert ("inputs_embeds" in skipped.tokens) == (skipped.first_layer > 0)
    torch.testing.assert_close(reader.logits(model, skipped), reader.logits(model, batch), atol=1e-5, rtol=1e-5)
    assert [name for name, _ in model.named_modules()] == names


@torch.no_grad()
def test_a_batch_without_its_lower_layers_depends_on_the_layers_above_only(llama: LoadedBase):
    model = causal_model("llama")
    reader = modality_of("causal").reader(model, llama.tokenizer, ("animal", "plant"))
    batch = reader.read(toy_task().examples("train")[:5])
    skipped, before = reader.skip_layers(model, batch, 2), reader.logits(model, batch)
    other = copy.deepcopy(model)
    for layer in other.model.layers[:2]:  # type: ignore[union-attr]
        layer.self_attn.q_proj.weight.mul_(3)
    torch.testing.assert_close(reader.logits(other, skipped), before, atol=1e-5, rtol=1e-5)
    other.model.layers[2].self_attn.v_proj.weight.mul_(3)  # type: ignore[union-attr]
    assert (reader.logits(other, skipped) - before).abs().max() > 1e-3


def test_a_free_answer_is_right_when_greedy_decoding_writes_it(tiny_llama: Path):
    base, task = base_of(tiny_llama), words_task()
    training = CorpusConfig(steps=60, batch_size=16, learning_rate=2e-2, keep_last=1)
    artifact = train_adapter([base], task, layout_of(tiny_llama, 4, ALL_ROLES), training, 0)[-1]
    adapted, bare = example_values(base, task, [artifact, None], "test", 24)
    assert sum(adapted) > 0.5 * len(adapted) and not any(bare)
    written = []
    with attached(base, artifact) as model, torch.no_grad():
        for example in task.examples("test")[:24]:
            asked = encode(base.tokenizer, [example.text], ANSWER)
            told = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
            written.append(base.tokenizer.decode(told, skip_special_tokens=True) == f" {example.label}")
    assert written == adapted


def values_of(reader: TaskReader, logits_PK: Tensor, batch: Any, monkeypatch: pytest.MonkeyPatch) -> Values:
    monkeypatch.setattr(causal_modality, "_next_token_logits", lambda *_: logits_PK)
    return reader.values(torch.nn.Identity(), batch)


def test_an_answer_is_wrong_when_one_token_is(llama: LoadedBase, monkeypatch: pytest.MonkeyPatch):
    reader = modality_of("causal").reader(llama.model, llama.tokenizer, ())
    batch = reader.read([Example(text="a dog", label="animal"), Example(text="the red tree", label="a plant")])
    sure = torch.nn.functional.one_hot(batch.wanted_P, 1 + int(batch.wanted_P.max())).float()
    assert values_of(reader, sure, batch, monkeypatch) == [1.0, 1.0]
    for position, example in enumerate(batch.where_BT.nonzero()[:, 0].tolist()):  # type: ignore[union-attr]
        wrong = sure.clone()
        wrong[position] = wrong[position].roll(1)
        assert values_of(reader, wrong, batch, monkeypatch) == [float(example != 0), float(example != 1)]


def test_the_majority_answer_of_free_text_is_the_most_frequent_one():
    task = words_task()
    assert majority_values(ACCURACY, task, "test", 8) == majority_values(ACCURACY, toy_task(), "test", 8)


def test_free_text_is_refused_where_it_cannot_be_written(tiny_bert: Path, llama: LoadedBase):
    bert = open_base(str(tiny_bert))
    with pytest.raises(TaskError, match="cannot write free text; give the task labels"):
        modality_of("encoder").reader(bert.model, bert.tokenizer, ())
    with pytest.raises(TaskError, match=r"answer 'a dog a dog .* tokens, at most 48; shorten it"):
        modality_of("causal").reader(llama.model, llama.tokenizer, ()).read([Example(text="x", label="a dog " * 100)])


def test_what_a_reader_reads_is_where_the_base_is(llama: LoadedBase):
    model, labels = copy.deepcopy(llama.model).to("meta"), ("animal", "plant")
    readers = [modality_of("causal").reader(model, llama.tokenizer, given) for given in (labels, ())]
    for reader in (*readers, EncoderReader(llama.tokenizer, labels, torch.empty(2, 32, device="meta"), 256)):
        batch = reader.read([Example(text=text, label="animal") for text in TEXTS])
        read = [*batch.tokens.values(), batch.wanted_P, *([] if batch.where_BT is None else [batch.where_BT])]
        assert {value.device.type for value in read} == {"meta"}


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "changed"),
    [("phi", {}), ("gptj", {"rotary_dim": 4}), ("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25})],
)
@pytest.mark.parametrize("labels", [("animal", "plant"), ()])
def test_a_bias_and_a_scale_of_the_output_layer_count(
    llama: LoadedBase, model_type: str, changed: dict[str, Any], labels: tuple[str, ...]
):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | changed, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    if (bias := model.get_output_embeddings().bias) is not None:
        bias.copy_(torch.randn_like(bias))
    reader: Any = modality_of("causal").reader(model, llama.tokenizer, labels)
    batch = reader.read(toy_task().examples("train")[:5])
    rows = [llama.tokenizer.encode(f" {label}", add_special_tokens=False)[0] for label in labels] or slice(None)
    wanted = model(**batch.tokens).logits[batch.where_BT][:, rows]
    torch.testing.assert_close(reader.logits(model, batch), wanted, atol=1e-4, rtol=1e-4)
    modality_of("causal").check(model, llama.tokenizer)


def test_a_model_whose_logits_are_made_otherwise_is_refused(llama: LoadedBase):
    other = copy.deepcopy(llama.model)
    head = other.lm_head
    other.lm_head = torch.nn.Sequential(head, torch.nn.Tanh())
    other.get_output_embeddings = lambda: head  # type: ignore[method-assign]
    with pytest.raises(BaseModelError, match=r"makes its logits in a way that is not known here"):
        modality_of("causal").check(other, llama.tokenizer)


def test_a_tokenizer_that_knows_nothing_and_outputs_that_are_no_numbers_are_refused(llama: LoadedBase):
    broken = copy.deepcopy(llama.model)
    broken.model.norm.variance_epsilon = -1e9  # type: ignore[union-attr]
    with pytest.raises(BaseModelError, match="outputs are not finite, though its weights are"):
        modality_of("causal").check(broken, llama.tokenizer)

    class Unknowing:
        all_special_ids = (1,)

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
            return {"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.ones(1, 4).long()}

    with pytest.raises(BaseModelError, match="its tokenizer knows no part of an English text"):
        modality_of("causal").check(llama.model, Unknowing())


def test_a_text_is_cut_to_the_positions_of_a_short_model(llama: LoadedBase):
    torch.manual_seed(0)
    short = {"vocab_size": 1000, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **short)).eval()
    long = [Example(text="dog " * 300, label="a dog"), Example(text="cat", label="a cat")]
    for labels in ((), ("a", "dog")):
        reader = modality_of("causal").reader(model, llama.tokenizer, labels)
        examples = [e.model_copy(update={"label": "dog"}) for e in long] if labels else long
        assert reader.read(examples).tokens["input_ids"].shape[1] <= 64
        assert len(reader.values(model, reader.read(examples))) == 2


def test_labels_are_the_tokens_that_follow_the_question(llama: LoadedBase):
    class StartsWithASpace:
        """A tokenizer that puts a space before every text, as Llama 2's does, and has no token for two of them."""

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return llama.tokenizer.encode(f"▁{text}", add_special_tokens=add_special_tokens)

    tokenizer = StartsWithASpace()
    alone = {tuple(tokenizer.encode(f" {label}")[:1]) for label in ("yes", "no")}
    assert len(alone) == 1, "where they stand alone, labels begin with one token"
    rows = label_tokens(tokenizer, ["yes", "no"], " ", ANSWER)
    assert rows == [llama.tokenizer.encode(f" {label}", add_special_tokens=False) for label in ("yes", "no")]
