"""Continued pretraining: the text is learnt, held-out text is not trained on, and what is stored loads again."""

from pathlib import Path

import pytest
import torch
from factory_fixtures import base_of

from oral_ray.bases import corpora
from oral_ray.bases.corpora import load_corpus
from oral_ray.bases.evolve import evolve_base
from oral_ray.bases.loading import open_base
from oral_ray.bases.pretrain import HELD_OUT_BLOCKS, perplexity, pretrain_base, text_blocks, weight_change
from oral_ray.config import EvolveOrigin, PretrainOrigin
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects

ORIGIN = PretrainOrigin(
    parent="t0", corpus="news", steps=20, batch_size=8, block_tokens=16, learning_rate=3e-3, threads=1
)


def documents(num: int, seed: int = 0) -> list[str]:
    """Sentences in which every noun has its own verb, so that there is something to learn."""
    rng = torch.Generator().manual_seed(seed)
    pairs = ("dog runs", "cat sleeps", "tree grows", "horse eats")
    return [" and the ".join(pairs[i] for i in torch.randint(4, (40,), generator=rng).tolist()) for _ in range(num)]


def test_pretraining_lowers_the_perplexity_of_held_out_text(tiny_llama: Path, objects: FileObjects):
    last = pretrain_base(base_of(tiny_llama).record, objects, "bases/t1/", ORIGIN, documents(60))
    before, after = base_of(tiny_llama), open_base(f"{objects.root}/bases/t1")
    held_out = documents(60)
    assert perplexity(after, held_out, 16) < 0.5 * perplexity(before, held_out, 16)
    assert 0.0 < last < 6.0
    assert 1e-3 < weight_change(before, after) < 1.0
    assert weight_change(before, before) == 0.0


def test_the_same_seed_makes_the_same_bytes_and_another_one_others(tiny_llama: Path, objects: FileObjects):
    short = ORIGIN.model_copy(update={"steps": 2})
    for name, origin in {"a": short, "b": short, "c": short.model_copy(update={"seed": 1})}.items():
        pretrain_base(base_of(tiny_llama).record, objects, f"bases/{name}/", origin, documents(60))
    weights = [objects.get(f"bases/{name}/model.safetensors") for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_held_out_blocks_are_the_first_and_are_not_trained_on(
    tiny_llama: Path, objects: FileObjects, monkeypatch: pytest.MonkeyPatch
):
    from oral_ray.bases import pretrain

    read: list[torch.Tensor] = []
    real = pretrain._loss
    monkeypatch.setattr(pretrain, "_loss", lambda model, blocks: read.append(blocks) or real(model, blocks))
    pretrain_base(base_of(tiny_llama).record, objects, "bases/t1/", ORIGIN, documents(60))
    base = base_of(tiny_llama)
    everything = text_blocks(base.tokenizer, documents(60), 16, 10_000)
    rows = {tuple(row) for row in torch.cat(read).tolist()}
    assert len(torch.cat(read)) == 160
    known = [tuple(row) for row in everything.tolist()]
    fresh = {row for row in known[:HELD_OUT_BLOCKS] if known.count(row) == 1}
    assert len(fresh) > 40 and not rows & fresh
    assert rows <= set(known)


@pytest.mark.parametrize("make", ["pretrained", "evolved"])
def test_a_parent_that_was_replaced_since_its_record_was_made_is_refused(
    make: str, tiny_llama: Path, tiny_bert: Path, objects: FileObjects
):
    parent = tiny_llama if make == "pretrained" else tiny_bert
    record = base_of(parent).record.model_copy(update={"fingerprint": "0" * 32})
    with pytest.raises(BaseModelError, match=f"has fingerprint {base_of(parent).record.fingerprint}, expected 000"):
        if make == "pretrained":
            pretrain_base(record, objects, "bases/t1/", ORIGIN, documents(60))
        else:
            origin = EvolveOrigin(parent="t0", steps=1, batch_size=1, seed=0)
            evolve_base(record, objects, "bases/t1/", origin, [("dog", "an animal")])
    assert list(objects.list()) == []


def test_too_short_a_corpus_is_refused_with_what_it_has(tiny_llama: Path, objects: FileObjects):
    with pytest.raises(BaseModelError, match=r"reads 224 blocks of 16 tokens, the corpus 'news' has \d+; lower steps"):
        pretrain_base(base_of(tiny_llama).record, objects, "bases/t1/", ORIGIN, documents(3))
    assert list(objects.list()) == []


def test_code_is_the_library_that_runs_and_an_unknown_corpus_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    code = load_corpus("code")
    assert sum(len(document) for document in code) > 2_000_000
    assert any("def " in document for document in code[:3])
    assert load_corpus("code") == code
    (tmp_path / "20newsgroups-train.tab").write_text(
        "Category\tText\nd\tstring\nclass\t\nsci\tfirst mail\nrec\tsecond\n"
    )
    monkeypatch.setattr(corpora, "unpacked", lambda *_: tmp_path)
    assert sorted(load_corpus("news")) == ["first mail", "second"]
    with pytest.raises(BaseModelError, match="unknown text corpus 'poems'; there are news, code"):
        load_corpus("poems")
