"""A base is loaded with exactly the weights that lie there and were fingerprinted, or refused by its true name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CHECKPOINTS, REFUSED, SINGLE, TAKEN, adapter_beside, put, weights_of

from oral_ray.bases import loading
from oral_ray.bases.catalog import describe_base
from oral_ray.bases.checkpoint import read_checkpoint
from oral_ray.bases.expected import ExpectedModel
from oral_ray.bases.loading import load_base, load_folder, open_base
from oral_ray.config import ConditionConfig
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects
from oral_ray.store.bases import stored_probes

TOKENS = torch.arange(5, 15)[None]
AT_LOADING = ("broken tokenizer", "tokenizer larger than the model", "no token to pad with", "not a number")


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny causal model that a test may change."""
    shutil.copytree(tiny_llama, tmp_path / "base")
    return tmp_path / "base"


def describe(folder: Path):
    return describe_base(FileObjects(folder), "", "base")


def values(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS))[0]


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken_has_the_logits_that_plain_transformers_reads_from_the_same_tensors(
    tiny_llama: Path, tmp_path: Path, kind: str
):
    from transformers import AutoModel, AutoModelForCausalLM

    TAKEN[kind](tiny_llama, tmp_path / "base")
    loaded = open_base(str(tmp_path / "base"))
    assert not (tmp_path / "base/RUN").exists(), "code of a checkpoint was run"
    # The reference reads a folder that holds nothing but config and weights.
    shutil.copytree(tmp_path / "base", tmp_path / "plain", ignore=shutil.ignore_patterns("*.py", "*.bin", "conso*"))
    path = tmp_path / "plain/config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("quantization_config", "auto_map")}
    path.write_text(json.dumps(config))
    auto = AutoModelForCausalLM if loaded.record.spec.kind == "causal" else AutoModel
    reference = auto.from_pretrained(str(tmp_path / "plain"), dtype=torch.float32, local_files_only=True).eval()
    assert torch.equal(values(loaded.model), values(reference))
    stored = weights_of(tmp_path / "plain") if (tmp_path / "plain" / SINGLE).exists() else {}
    for name, value in loaded.model.state_dict().items():
        lying = [stored[other] for other in stored if other == name or other.endswith(f".{name}")]
        assert all(torch.equal(value, other.float()) for other in lying)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_by_its_true_name_in_one_sentence(tiny_llama: Path, tmp_path: Path, kind: str):
    REFUSED[kind].make(tiny_llama, tmp_path / "base")
    with pytest.raises(BaseModelError) as caught:
        open_base(str(tmp_path / "base"))
    message = str(caught.value)
    assert REFUSED[kind].reason in message
    assert str(tmp_path / "base") in message
    assert "\n" not in message
    assert re.search(r"; \w+", message) or "run git lfs pull" in message, "no remedy"
    if kind not in AT_LOADING:
        with pytest.raises(BaseModelError, match=re.escape(REFUSED[kind].reason)):
            describe(tmp_path / "base")


def test_every_kind_has_one_verdict():
    assert CHECKPOINTS.keys() == TAKEN.keys() | REFUSED.keys()
    assert not TAKEN.keys() & REFUSED.keys()
    assert all(kind.reason for kind in REFUSED.values())


@pytest.mark.parametrize("kind", ["masked language model", "tied, head left out"])
def test_nothing_is_ever_filled_in_at_random(tiny_llama: Path, tmp_path: Path, kind: str):
    TAKEN[kind](tiny_llama, tmp_path / "base")
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(open_base(str(tmp_path / "base")).model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any("pooler" in name for name in states[0])


def test_a_pooler_whose_weights_are_there_is_loaded(tiny_bert: Path):
    pooler = weights_of(tiny_bert)["pooler.dense.weight"]
    assert torch.equal(open_base(str(tiny_bert)).model.pooler.dense.weight, pooler)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: {n: v for n, v in w.items() if n != "model.norm.weight"}, "lacks 'model.norm.weight' of the 21"),
        (lambda w: w | {"model.extra.weight": torch.ones(2)}, "holds 'model.extra.weight', which a LlamaForCausalLM"),
        (lambda w: w | {"model.norm.weight": torch.ones(16)}, "'model.norm.weight' is (16,), config.json says (32,)"),
    ],
    ids=["missing", "left over", "another shape"],
)
def test_the_report_of_the_loader_is_heard_where_headers_said_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]], reason: str
):
    put(base, change(weights_of(base)))
    monkeypatch.setattr(ExpectedModel, "check", lambda *_: None)
    with pytest.raises(BaseModelError, match=re.escape(reason)):
        load_folder(base, "causal")


def test_an_adapter_that_lands_after_the_look_is_not_attached(base: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = values(open_base(str(base)).model)
    load_model = loading._load_model

    def late(view: Path, *args: Any) -> Any:
        adapter_beside(base)
        return load_model(view, *args)

    monkeypatch.setattr(loading, "_load_model", late)
    assert torch.equal(values(load_folder(base, "causal")[0]), wanted)


def replaced(folder: Path) -> None:
    """Another folder of the same name, whose weights differ."""
    folder.rename(folder.with_name("old"))
    shutil.copytree(folder.with_name("old"), folder)
    rewritten(folder)


def rewritten(folder: Path) -> None:
    put(folder, {name: value + 1 for name, value in weights_of(folder).items()})


@pytest.mark.parametrize("change", [replaced, rewritten, lambda f: (f / "tokenizer_config.json").write_text("{}")])
@pytest.mark.parametrize("moment", ["load_folder", "_load_model"])
def test_a_base_that_is_replaced_between_fingerprint_and_load_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], moment: str
):
    record, before = describe(base), getattr(loading, moment)

    def late(*args: Any) -> Any:
        change(base)
        return before(*args)

    monkeypatch.setattr(loading, moment, late)
    with pytest.raises(BaseModelError, match=r"changed while it was read \('\w+\.(safetensors|json)'\); wait until"):
        load_base(record)


def test_a_base_of_another_fingerprint_than_the_record_says_is_refused(base: Path):
    record = describe(base)
    rewritten(base)
    with pytest.raises(BaseModelError, match=f"expected {record.fingerprint}; it was replaced, run the catalog again"):
        load_base(record)


def test_what_is_in_memory_does_not_change_with_the_file(base: Path):
    loaded = open_base(str(base))
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    with (base / SINGLE).open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start)
        file.write(bytes((base / SINGLE).stat().st_size - start))
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("moment", ["before it is mapped", "before it is copied"])
def test_a_file_that_is_cut_while_it_is_loaded_is_refused_and_not_read_beyond_its_end(
    base: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    from transformers import AutoModelForCausalLM

    load, size = AutoModelForCausalLM.from_pretrained, (base / SINGLE).stat().st_size
    check = loading.check_plain

    def cut() -> None:
        with (base / SINGLE).open("r+b") as file:
            file.truncate(size // 2)

    if moment == "before it is mapped":
        monkeypatch.setattr(loading, "check_plain", lambda *args: (check(*args), cut()))
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **_: pytest.fail("it was mapped"))
    else:
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **o: (load(*a, **o), cut())[0])
    with pytest.raises(BaseModelError, match=f"'model.safetensors' has {size // 2} bytes, and had {size} a moment ago"):
        load_folder(base, "causal")


def test_probes_of_a_base_that_was_replaced_are_not_kept_for_the_old_one(base: Path, objects: FileObjects):
    record = describe(base)
    rewritten(base)
    with pytest.raises(BaseModelError, match=f"expected {record.fingerprint}; it was replaced, run the catalog again"):
        stored_probes(objects, record, ConditionConfig())
    assert list(objects.list()) == []


BEHAVIOUR = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "chat_template.jinja", "chat_template.json",
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", BEHAVIOUR)
def test_another_content_of_a_file_that_changes_answers_is_another_fingerprint(base: Path, name: str):
    seen = {describe(base).fingerprint}
    for text in ("{}", '{"a": 1}'):
        (base / name).write_text(text)
        seen.add(describe(base).fingerprint)
        assert name in read_checkpoint(FileObjects(base)).files
    assert len(seen) == 3


@pytest.mark.parametrize(
    "name", ["README.md", "train.py", "optimizer.pt", "generation_config.json", "requirements.txt"]
)
def test_what_changes_no_answer_is_not_in_the_fingerprint(base: Path, name: str):
    before = describe(base).fingerprint
    (base / name).write_text("x")
    assert describe(base).fingerprint == before


def test_a_tokenizer_that_fails_when_it_is_used_is_refused_when_it_is_loaded(tiny_llama: Path, tmp_path: Path):
    shutil.copytree(tiny_llama, tmp_path / "base")
    settings = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": [512]}))
    with pytest.raises(BaseModelError, match=r"cannot read the tokenizer at .*base.*check its files"):
        open_base(str(tmp_path / "base"))
