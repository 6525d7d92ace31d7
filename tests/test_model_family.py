"""A model family that nobody here has heard of, with queries, keys and values fused in one Linear of 3 * hidden: what the
page for contributors says about adding one is enough, from `oral-ray inspect` to training, scores, a generated adapter and
`oral-ray verify`. Below it the fused projections of two families that transformers has."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tokenizer
from factory_fixtures import shaken_network, small_spec, stats_of, toy_task
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from oral_ray.adapters.artifact import write_folder
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import train_adapter
from oral_ray.bases import roles
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.bases.probes import weight_probes
from oral_ray.bases.skeleton import _built
from oral_ray.cli import main
from oral_ray.config import ConditionConfig, CorpusConfig, LoraSettings, SamplingConfig
from oral_ray.errors import BaseModelError
from oral_ray.evaluation.scoring import example_values
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder, fit_probe_stats
from oral_ray.generator.model import Generator
from oral_ray.objects import FileObjects

FUSED = "tri_mix"  # what this family calls its fused projection


class WovenConfig(PreTrainedConfig):
    """The numbers of the made-up family."""

    model_type = "woven"

    def __init__(self, hidden_size: int = 32, num_hidden_layers: int = 2, vocab_size: int = 50, **more: Any) -> None:
        self.hidden_size, self.num_hidden_layers, self.vocab_size = hidden_size, num_hidden_layers, vocab_size
        super().__init__(**more)


class WovenLayer(nn.Module):
    """Causal attention of one head, with a fused projection."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.add_module(FUSED, nn.Linear(hidden, 3 * hidden))
        self.o_proj = nn.Linear(hidden, hidden)

    def forward(self, states_BTH: Tensor) -> Tensor:
        q, k, v = self.get_submodule(FUSED)(states_BTH).chunk(3, -1)
        return states_BTH + self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class WovenModel(PreTrainedModel):
    """The body."""

    config_class = WovenConfig
    base_model_prefix = "model"

    def __init__(self, config: WovenConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([WovenLayer(config.hidden_size) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False
    ) -> BaseModelOutput:
        states_BTH = self.embed(input_ids)
        for layer in self.layers:
            states_BTH = layer(states_BTH)
        return BaseModelOutput(last_hidden_state=states_BTH)


class WovenForCausalLM(PreTrainedModel):
    """The body with an output layer."""

    config_class = WovenConfig
    base_model_prefix = "model"

    def __init__(self, config: WovenConfig) -> None:
        super().__init__(config)
        self.model = WovenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids).last_hidden_state))


@pytest.fixture
def woven(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of a family that transformers knows, as it knows one that a package of somebody else registers."""
    _built.cache_clear()
    AutoConfig.register("woven", WovenConfig)
    AutoModelForCausalLM.register(WovenConfig, WovenForCausalLM)
    folder = tmp_path / "woven"
    tokenizer = save_tokenizer(folder, ("[CLS] $A", [("[CLS]", 2)]))
    torch.manual_seed(0)
    WovenForCausalLM(WovenConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    yield folder
    CONFIG_MAPPING._extra_content.pop("woven")
    AutoModelForCausalLM._model_mapping._extra_content.pop(WovenConfig)
    _built.cache_clear()


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that the family needs: the end of the projection's name, in the row of its role."""
    monkeypatch.setitem(roles.ROLE_OF, FUSED, "qkv")


def test_inspect_says_which_name_has_no_role(woven: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(woven)]) == 0
    assert (
        "woven causal language model with 2 layers, hidden size 32 and linear modules other, o."
        in capsys.readouterr().out
    )


def test_one_ending_in_the_table_of_roles_makes_the_fused_projection_known(
    woven: Path, named: None, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(woven)]) == 0
    out = capsys.readouterr().out
    assert "hidden size 32 and linear modules qkv, o." in out
    layout = AdapterLayout.of(open_base(str(woven)).record.spec, LoraSettings(r=4, target_modules=("qkv",)), 32)
    shapes = {slot.key.rpartition(FUSED)[2]: slot.shape(4) for slot in layout.slots}
    assert shapes == {".lora_A.weight": (4, 32), ".lora_B.weight": (96, 4)}


def test_a_base_of_the_family_is_trained_scored_and_verified(woven: Path, named: None, tmp_path: Path):
    base = open_base(str(woven))
    layout = AdapterLayout.of(base.record.spec, LoraSettings(r=4, target_modules=("qkv", "o")), 32)
    training = CorpusConfig(steps=60, batch_size=16, learning_rate=2e-2, keep_last=1)
    [adapter] = train_adapter([base], toy_task(), layout, training, seed=0)
    [values] = example_values(base, toy_task(), [adapter], "test", 100)
    assert sum(values) / len(values) > 0.9
    write_folder(adapter, tmp_path / "adapter")
    assert main(["verify", str(tmp_path / "adapter"), "--base", str(woven)]) == 0


def test_a_generator_makes_an_adapter_for_the_fused_projection_that_verify_takes(
    woven: Path, named: None, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lora = LoraSettings(r=2, target_modules=("qkv",))
    base = open_base(str(woven)).record
    encoder = ConditionEncoder(ConditionConfig(text_encoder=str(tiny_bert)))
    spec = small_spec(
        text_dim=encoder.text_dim, model_dim=encoder.model_dim, condition=encoder.config,
        text_encoder_fingerprint=encoder.fingerprint,
    )  # fmt: skip
    probes = weight_probes(FileObjects(woven), "", base.spec, ("qkv",), 4)
    seen = [(base.spec.digest, {name: probe * scale for name, probe in probes.items()}) for scale in (1.0, 0.8, 1.3)]
    stats = stats_of(AdapterLayout.of(base.spec, lora, spec.token_dim))
    generator = Generator(spec, shaken_network(spec), stats, fit_probe_stats(seen, 4))
    factory = AdapterFactory(generator, encoder, SamplingConfig(num_steps=3), lambda _: probes)
    [adapter] = factory.generate([Condition("Is it an animal or a plant?", base, lora, 0)])
    adapter.write(tmp_path / "made")
    assert main(["verify", str(tmp_path / "made"), "--base", str(woven)]) == 0
    assert f"adapts      2 modules ({FUSED})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: {n: v for n, v in w.items() if "layers.1.o_proj.bias" not in n}, "lacks 'model.layers.1.o_proj.bias'"),
        (lambda w: w | {f"model.layers.2.{FUSED}.bias": torch.zeros(96)}, f"holds 'model.layers.2.{FUSED}.bias', which a"),
        (lambda w: w | {f"model.layers.0.{FUSED}.weight": torch.zeros(64, 32)}, r"is \(64, 32\), config.json says \(96, "),
    ],
    ids=["missing", "left over", "another shape"],
)  # fmt: skip
def test_a_checkpoint_of_the_family_is_checked_like_any_other(woven: Path, change: Any, reason: str):
    save_file(change(load_file(woven / "model.safetensors")), woven / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match=reason):
        open_base(str(woven))


def test_the_base_in_memory_is_of_the_family(woven: Path):
    base: LoadedBase = open_base(str(woven))
    assert isinstance(base.model, WovenForCausalLM) and base.record.spec.kind == "causal"


@pytest.mark.parametrize(
    ("config", "fused", "d_out"),
    [
        ({"model_type": "granitemoehybrid", "shared_intermediate_size": 48, "mamba_n_heads": 4}, "up", 96),
        ({"model_type": "jetmoe", "kv_channels": 16, "num_key_value_heads": 2}, "qkv", 64),
    ],
    ids=["gate and up", "keys and values"],
)
def test_a_fused_projection_of_a_family_of_transformers_is_one_module(
    config: dict[str, Any], fused: str, d_out: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    assert main(["inspect", str(tmp_path), f"--targets={fused}", "--json"]) == 0
    slots = json.loads(capsys.readouterr().out)["slots"]
    assert [(slot["role"], slot["factor"], slot["d_out"]) for slot in slots] == [
        (fused, "A", d_out),
        (fused, "B", d_out),
    ] * 2
