"""Every adapter of the wild is taken with the outputs that peft gives, or refused by its true name; the base stays."""

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import save_model, save_tokenizer
from factory_fixtures import copy_of_weights
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from wild.adapters import ADAPTERS, BERT, LLAMA, TAKEN, factors, peft_settings, write

from oral_ray.adapters import patterns
from oral_ray.adapters.artifact import AdapterArtifact, Provenance, read_folder
from oral_ray.adapters.export import diffusers_tensors
from oral_ray.adapters.intake import plain_factors, take, take_in
from oral_ray.adapters.lora import attached, difference_from_peft, load_strictly
from oral_ray.adapters.settings import LoraFileSettings, read_settings
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.cli import main
from oral_ray.errors import ArtifactError, OralError
from oral_ray.evaluation.verify import verify_adapter

TOKENS = torch.tensor([[5, 17, 99, 3, 42, 8], [77, 12, 6, 31, 2, 54]])
open_once = cache(open_base)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT2LMHeadModel, hidden 32, 2 layers: its linear modules are Conv1D, stored the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("bases") / "tiny-gpt2"
    tokenizer = save_tokenizer(folder, ("[CLS] $A", [("[CLS]", 2)]))
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=2, eos_token_id=3
    )
    return save_model(GPT2LMHeadModel, config, folder)


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    found = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@pytest.fixture
def unchanged() -> Iterator[list[LoadedBase]]:
    """Bases that are put in here must have the same modules, weights and outputs after the test."""
    bases: list[LoadedBase] = []
    yield bases
    for base in bases:
        fresh = open_base(base.record.id)
        before, after = copy_of_weights(fresh.model), base.model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert [name for name, _ in fresh.model.named_modules()] == [name for name, _ in base.model.named_modules()]
        assert torch.equal(outputs(fresh.model), outputs(base.model))


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_the_wild_is_taken_as_peft_takes_it_or_refused_by_its_name(
    name: str, tmp_path: Path, unchanged: list[LoadedBase], request: pytest.FixtureRequest
) -> None:
    wild, folder = ADAPTERS[name], tmp_path / "it"
    base = open_once(str(request.getfixturevalue(wild.base)))
    unchanged.append(base)
    wild.build(folder)
    if wild.verdict != TAKEN:
        with pytest.raises(OralError, match=wild.verdict) as caught:
            take(base, read_folder(folder), str(folder))
        sentence = str(caught.value)
        assert str(folder) in sentence and "\n" not in sentence and len(sentence) < 700
        return
    intake = take_in(base, read_folder(folder), str(folder))
    if intake.is_renamed:  # peft would pass over every tensor: right is what it gives with the names it knows
        folder = write(tmp_path / "renamed", peft_settings(), factors(LLAMA))
    theirs = outputs(PeftModel.from_pretrained(open_base(base.record.id).model, str(folder)).eval())
    with attached(base, read_folder(tmp_path / "it")) as model:
        ours = outputs(model)
    assert float((ours - theirs).abs().max()) < 1e-5
    if name != "zero":
        assert float((theirs - outputs(base.model)).abs().max()) > 1e-3
    assert difference_from_peft(base, intake, tmp_path / "it")[0] < 1e-5
    assert take(base, intake.artifact) is intake.artifact, "what is plain is taken as it is"


def test_every_refusal_is_a_sentence_with_a_remedy(tmp_path: Path, tiny_llama: Path) -> None:
    base = open_once(str(tiny_llama))
    for i, (name, wild) in enumerate(ADAPTERS.items()):
        if wild.verdict != TAKEN:
            wild.build(tmp_path / str(i))
            with pytest.raises(OralError) as caught:
                take(base, read_folder(tmp_path / str(i)), "it")
            assert any(mark in str(caught.value) for mark in ("; ", ": name that")), name


@pytest.mark.parametrize(
    "pattern",
    [
        {"target_modules": r"(\w+\.?)+!"},
        {"target_modules": "all-linear", "exclude_modules": r"(\w+\.?)+!"},
        {"rank_pattern": {r"(\w+\.?)+!": 4}},
    ],
    ids=["target_modules", "exclude_modules", "rank_pattern"],
)
def test_a_pattern_that_would_never_end_is_given_up_and_named(
    pattern: dict[str, object], tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.7)
    names = {f"model.layers.{i}.self_attn.with_a_long_name_at_its_end.q_proj": (32, 32) for i in (0, 1)}
    artifact = read_folder(write(tmp_path / "it", peft_settings(**pattern), factors(names)))
    monkeypatch.setattr("peft.PeftModel", None)  # peft is not even asked
    with pytest.raises(ArtifactError, match=r"adapter it: .* has the pattern .*!', which is not done with the names"):
        patterns.check_patterns_end(read_settings(artifact.config, "it"), names, "it")
    if "rank_pattern" in pattern:
        with pytest.raises(ArtifactError, match=r"which is not done with the names of the modules in 0\.7 s"):
            plain_factors(artifact, "it")


def test_what_a_plain_adapter_is_refused_for_names_its_folder(tmp_path: Path, tiny_llama: Path) -> None:
    base = open_once(str(tiny_llama))
    plain = take(base, read_folder(write(tmp_path / "sound", peft_settings(), factors(LLAMA))))
    tensors = {key: torch.full_like(tensor, torch.nan) for key, tensor in plain.tensors.items()}
    with pytest.raises(ArtifactError, match=r"^adapter my-folder holds values that are not finite"):
        take(base, dataclasses.replace(plain, tensors=tensors), "my-folder")
    with pytest.raises(ArtifactError, match=r"^adapter my-folder"):
        take(base, dataclasses.replace(plain, tensors=dict([*tensors.items()][1:])), "my-folder")


def test_every_setting_that_peft_has_is_known_by_name(tmp_path: Path) -> None:
    truthy: dict[str, object] = {field.name: ["x"] for field in dataclasses.fields(LoraConfig)}
    for key in truthy.keys() - LoraFileSettings.model_fields.keys():
        try:
            read_settings(peft_settings(**{key: truthy[key]}), "it")
        except ArtifactError as error:
            assert "the peft known here does not have" not in str(error) or key == "init_lora_weights", key


def test_the_rest_of_a_taken_adapter_is_what_build_artifact_makes(tmp_path: Path, tiny_llama: Path) -> None:
    base = open_once(str(tiny_llama))
    ADAPTERS["rslora"].build(tmp_path / "a")
    taken = take(base, read_folder(tmp_path / "a"))
    assert taken.config == {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": "tiny", "r": 4, "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True,
    }  # fmt: skip
    assert read_folder(tmp_path / "a").lora.lora_alpha == 16, "the alpha of alpha / r"
    ADAPTERS["layers_to_transform"].build(tmp_path / "b")
    part = take(base, read_folder(tmp_path / "b"))
    assert part.config["target_modules"] == ["1.self_attn.q_proj", "1.self_attn.v_proj"]
    with pytest.raises(ArtifactError, match="known on its base only"):
        _ = read_folder(tmp_path / "b").lora


def test_a_name_that_is_a_role_is_not_taken_for_it(tmp_path: Path, tiny_llama: Path) -> None:
    write(tmp_path / "a", peft_settings(target_modules=["q", "v"]), factors(LLAMA))
    with pytest.raises(ArtifactError, match=r"adapts \['q', 'v'\], and base .* has no such module"):
        take(open_once(str(tiny_llama)), read_folder(tmp_path / "a"))


def test_a_wild_card_of_names_that_could_be_two_modules_is_refused(tmp_path: Path) -> None:
    from oral_ray.adapters.matching import find_places

    modules = ["a.model.x.0.q", "a.x.0.q"]
    with pytest.raises(ArtifactError, match="none of its 4 tensors fits"):
        find_places(
            [f"a.language_model.x.{i}.q.lora_{f}.weight" for i in (0, 1) for f in "AB"], modules, modules, "it", "b"
        )


def test_peft_failing_half_way_leaves_the_base_alone(
    tmp_path: Path, tiny_llama: Path, unchanged: list[LoadedBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_once(str(tiny_llama))
    unchanged.append(base)
    ADAPTERS["plain"].build(tmp_path / "a")

    def load_adapter(*_: object, **__: object) -> None:
        raise RuntimeError("size mismatch for half of it")

    monkeypatch.setattr(PeftModel, "load_adapter", load_adapter)
    with pytest.raises(ArtifactError, match=r"peft refuses .*size mismatch for half of it"):
        load_strictly(base, tmp_path / "a")


def test_loading_strictly_refuses_names_that_peft_passes_over(tmp_path: Path, tiny_llama: Path) -> None:
    ADAPTERS["names with .default"].build(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"does not load .* fully"):
        load_strictly(open_once(str(tiny_llama)), tmp_path / "a")


def test_verify_says_what_an_adapter_is(tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", peft_settings(use_rslora=True, base_model_name_or_path=str(tiny_llama)), factors(LLAMA))
    assert main(["verify", str(tmp_path / "a"), "--base", str(tiny_llama)]) == 0
    out = capsys.readouterr().out
    assert (
        "rank-stabilised LoRA, r=4, alpha=8 (16 as a plain LoRA), float32" in out
        and "4 modules (q_proj, v_proj), 896 parameters" in out
    )
    assert out.splitlines()[-1] == "ok: this base by its name"
    assert main(["verify", str(tmp_path / "a"), "--base", str(tiny_llama), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["lora_alpha"], found["num_modules"]) == ("ok", 16.0, 4)
    assert found["difference"] < 1e-5 < found["change"]


def test_verify_warns_of_other_weights_and_refuses_another_architecture(
    tmp_path: Path, tiny_llama: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ADAPTERS["wrong base name"].build(tmp_path / "a")
    found = verify_adapter(tmp_path / "a", str(tiny_llama))
    assert found.verdict == "other weights" and "'meta-llama/Llama-3.1-70B'" in found.reason
    provenance = Provenance(origin="trained", base="v1", base_fingerprint="f" * 32)
    (tmp_path / "a" / "provenance.json").write_text(provenance.model_dump_json())
    found = verify_adapter(tmp_path / "a", str(tiny_llama))
    assert found.verdict == "other weights" and "another version of the same architecture" in found.reason
    same = provenance.model_copy(update={"base_fingerprint": open_once(str(tiny_llama)).record.fingerprint})
    (tmp_path / "a" / "provenance.json").write_text(same.model_dump_json())
    assert verify_adapter(tmp_path / "a", str(tiny_llama)).verdict == "ok"
    assert main(["verify", str(tmp_path / "a"), "--base", str(tiny_bert)]) == 2
    assert "made for another architecture" in capsys.readouterr().err


def test_verify_says_that_an_adapter_changes_nothing(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ADAPTERS["zero"].build(tmp_path / "a")
    assert main(["verify", str(tmp_path / "a"), "--base", str(tiny_llama)]) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("changes nothing: every lora_B @ lora_A is zero")


def test_verify_as_json_says_why_it_refuses(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ADAPTERS["pissa"].build(tmp_path / "a")
    assert main(["verify", str(tmp_path / "a"), "--base", str(tiny_llama), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "refused" and "'pissa'" in found["reason"]


def test_verify_refuses_an_intake_that_computes_other_values_than_peft(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ADAPTERS["rslora"].build(tmp_path / "a")
    monkeypatch.setattr(LoraFileSettings, "rank_and_scale", lambda self, module: (self.r, self.lora_alpha / self.r))
    with pytest.raises(ArtifactError, match="computes other values with peft"):
        verify_adapter(tmp_path / "a", str(tiny_llama))


def test_verify_refuses_outputs_that_are_not_finite(tmp_path: Path, tiny_llama: Path) -> None:
    write(tmp_path / "a", peft_settings(lora_alpha=1e29), factors(LLAMA, scale=1e15))
    with pytest.raises(ArtifactError, match=r"makes the outputs of .* not finite"):
        verify_adapter(tmp_path / "a", str(tiny_llama))


def test_score_counts_the_scale_of_a_rank_stabilised_adapter(tmp_path: Path, tiny_bert: Path) -> None:
    """What is scored is what peft computes: alpha / sqrt(r), not alpha / r."""
    from oral_ray.evaluation.scoring import example_values
    from oral_ray.tasks import load_task

    base, task = open_once(str(tiny_bert)), load_task("wordnet/mind")
    strong = factors(BERT, scale=0.6)
    settings = {"target_modules": ["query", "value"], "task_type": None}
    write(tmp_path / "a", peft_settings(use_rslora=True, **settings), strong)
    write(tmp_path / "same", peft_settings(lora_alpha=16, **settings), strong)
    write(tmp_path / "other", peft_settings(**settings), strong)
    found = [
        example_values(base, task, [read_folder(tmp_path / name)], "test", 200)[0] for name in ("a", "same", "other")
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({"use_rslora": True}, 8 / 2), ({}, 8 / 4), ({"alpha_pattern": {"to_q": 2}, "target_modules": ".*to_q"}, 2 / 4)],
)
def test_an_export_has_the_scale_that_peft_uses(settings: dict[str, object], scale: float) -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = factors({module: (8, 8)})
    artifact = AdapterArtifact(
        peft_settings(**{"target_modules": ["to_q"], **settings}), tensors,
        Provenance(origin="unknown", base="", base_fingerprint=""),
    )  # fmt: skip
    found = diffusers_tensors(artifact)
    wanted = tensors[f"base_model.model.{module}.lora_B.weight"] @ tensors[f"base_model.model.{module}.lora_A.weight"]
    product = found[f"unet.{module}.lora_B.weight"] @ found[f"unet.{module}.lora_A.weight"]
    assert torch.allclose(product, scale * wanted, atol=1e-6)
