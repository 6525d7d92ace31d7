"""An exported adapter changes a diffusers UNet exactly as peft would, and what diffusers would drop is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact, write_folder
from oral_ray.adapters.export import FILE_NAME, diffusers_tensors, export_diffusers
from oral_ray.bench.layouts import layout_of
from oral_ray.cli import main
from oral_ray.errors import ArtifactError

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
MODULES = {
    f"{ATTENTION}.to_q": (32, 32), f"{ATTENTION}.to_v": (32, 32),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (32, 64),
}  # fmt: skip


def adapter(modules: dict[str, tuple[int, int]], r: int = 2, alpha: int = 8) -> AdapterArtifact:
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (d_out, d_in) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, d_in, generator=rng)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(d_out, r, generator=rng)
    config = {
        "peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": ["to_q", "to_v", "to_k"], "bias": "none",
        "base_model_name_or_path": "sd",
    }  # fmt: skip
    return AdapterArtifact(
        config, tensors, Provenance(origin="generated", base_id="sd", base_fingerprint="f", prompt="ink")
    )


def test_the_file_has_diffusers_keys_and_the_scale_is_in_lora_b(tmp_path: Path) -> None:
    artifact = adapter(MODULES)
    path = export_diffusers(artifact, tmp_path / FILE_NAME)
    tensors = load_file(path)
    assert set(tensors) == {f"unet.{module}.lora_{factor}.weight" for module in MODULES for factor in "AB"}
    for module in MODULES:
        a, b = (artifact.tensors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
        assert torch.equal(tensors[f"unet.{module}.lora_A.weight"], a)
        assert torch.equal(tensors[f"unet.{module}.lora_B.weight"], b * 4)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["oral_ray"])["digest"] == artifact.digest


def test_diffusers_applies_the_file_to_a_unet_as_the_artifact_says(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="pip install --no-deps diffusers")
    artifact = adapter(MODULES)
    path = export_diffusers(artifact, tmp_path / FILE_NAME)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    unet.load_lora_adapter(load_file(path), prefix="unet", adapter_name="x")
    unet.fuse_lora()
    unet.unload_lora()
    moved = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"{module}.weight" for module in MODULES}
    for module in MODULES:
        a, b = (artifact.tensors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
        change = unet.state_dict()[f"{module}.weight"] - before[f"{module}.weight"]
        torch.testing.assert_close(change, b @ a * (8 / 2), atol=1e-4, rtol=1e-4)


def test_a_layout_of_stable_diffusion_is_exported_whole() -> None:
    layout = layout_of("stable-diffusion-2.1-unet", "q,v", r=2, token_dim=1024)
    provenance = Provenance(origin="generated", base_id="sd", base_fingerprint="f")
    factors = {slot.module: (torch.zeros(2, slot.d_in), torch.zeros(slot.d_out, 2)) for slot in layout.slots}
    tensors = diffusers_tensors(build_artifact(factors, layout, provenance))
    assert set(tensors) == {f"unet.{slot.module}.lora_{slot.factor}.weight" for slot in layout.slots}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("encoder.layer.0.attention.self.query", "'encoder.layer.0.attention.self.query' is of no diffusers UNet"),
        ("model.layers.0.self_attn.q_proj", "use the adapter with peft as it is"),
    ],
)
def test_an_adapter_of_a_language_model_is_refused_and_nothing_is_written(
    module: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(adapter({module: (8, 8)}), tmp_path / "a")
    out = tmp_path / FILE_NAME
    assert main(["export", str(tmp_path / "a"), "--format", "diffusers", "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_factor_without_the_other_one_is_refused(tmp_path: Path) -> None:
    artifact = adapter(MODULES)
    tensors = {key: t for key, t in artifact.tensors.items() if not key.endswith("attn2.to_k.lora_A.weight")}
    with pytest.raises(ArtifactError, match="incomplete"):
        export_diffusers(AdapterArtifact(artifact.config, tensors, artifact.provenance), tmp_path / FILE_NAME)


def test_the_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(adapter(MODULES), tmp_path / "a")
    out = tmp_path / FILE_NAME
    assert main(["export", str(tmp_path / "a"), "--format", "diffusers", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert len(load_file(out)) == 6
