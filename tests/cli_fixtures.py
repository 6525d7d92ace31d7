"""A tiny store that `oral-ray generate` works on: one base, one untrained generator, one adapter; and broken bases."""

import json
import shutil
from pathlib import Path

import torch

from oral_ray.adapters.artifact import AdapterArtifact, Provenance, build_artifact
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import TokenStats
from oral_ray.bases.catalog import describe_base
from oral_ray.config import ConditionConfig, GeneratorConfig, LoraSettings, MlpDenoiserConfig
from oral_ray.generator.condition import ConditionEncoder, ProbeStats
from oral_ray.generator.model import Generator, build_network, save_generator
from oral_ray.generator.spec import GeneratorSpec
from oral_ray.objects import FileObjects
from oral_ray.store.generators import promote_generator, put_generator

CONFIG = 'name = "tiny"\n[lora]\nr = 2\n[sampling]\nnum_steps = 2\n'
LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


def build_place(root: Path, bert: Path) -> Path:
    """A folder with `store/`, `run.toml`, a regular file `file`, adapters `adapter/`, `rank1/`, `nan/`, and bases `cut/`,
    `long/`, `llama-8b/`."""
    store = FileObjects(root / "store")
    shutil.copytree(bert, store.root / "bases/v1")
    spec = describe_base(store, "bases/v1/", "v1").spec
    condition = ConditionConfig(text_encoder=str(bert), num_components=2)
    encoder = ConditionEncoder(condition)
    sizes = GeneratorConfig(
        width=16,
        num_layers=1,
        state_dim=8,
        head_dim=8,
        chunk_size=16,
        denoiser=MlpDenoiserConfig(width=16, num_blocks=1),
    )
    about = GeneratorSpec(
        generator=sizes, condition=condition, token_dim=16, text_dim=encoder.text_dim, model_dim=encoder.model_dim,
        text_encoder_fingerprint=encoder.fingerprint, architectures=(spec.digest,), recipe="r1",
    )  # fmt: skip
    scales = {(role, factor): ((0.0, 1.0), (1.0, 1.0)) for role in "qv" for factor in "AB"}
    save_generator(
        Generator(about, build_network(about, 0), TokenStats(scales, {}), ProbeStats({}, {}, {})), root / "g"
    )
    put_generator(store, "r1", root / "g")
    promote_generator(store, "tiny", "r1")
    (root / "run.toml").write_text(CONFIG)
    (root / "file").write_text("a file, no folder")
    (root / "adapter").mkdir()
    layout = AdapterLayout.of(spec, LoraSettings(r=2), token_dim=16)
    zeros = {s.module: (torch.zeros(2, s.d_in), torch.zeros(s.d_out, 2)) for s in layout.slots}
    artifact = build_artifact(zeros, layout, Provenance(origin="trained", base="v1", base_fingerprint="f"))
    for name, data in artifact.files().items():
        (root / "adapter" / name).write_bytes(data)
    break_bases(root, bert)
    break_adapters(root, artifact)
    return root


def break_adapters(root: Path, artifact: AdapterArtifact) -> None:
    """Adapters that no command may accept: tensors of rank 1 under a configuration of rank 2, and one not finite."""
    rank1 = {key: t[:1] if ".lora_A." in key else t[:, :1] for key, t in artifact.tensors.items()}
    not_finite = {key: torch.full_like(t, torch.nan) for key, t in artifact.tensors.items()}
    for name, tensors in {"rank1": rank1, "nan": not_finite}.items():
        (root / name).mkdir()
        for file, data in AdapterArtifact(artifact.config, tensors, artifact.provenance).files().items():
            (root / name / file).write_bytes(data)
    for name, change in {"ia3": {"peft_type": "IA3"}, "odd": {"task_type": "FOO"}, "biased": {"bias": "zz"}}.items():
        (root / name).mkdir()
        for file, data in (
            AdapterArtifact(artifact.config | change, artifact.tensors, artifact.provenance).files().items()
        ):
            (root / name / file).write_bytes(data)
    for name, file in {"tables": "scores.parquet", "summary": "summary.json"}.items():
        (root / name).mkdir()
        (root / name / file).write_bytes(b"{")


def break_bases(root: Path, bert: Path) -> None:
    """Bases that no command may accept, and a large one without weights."""
    weights = (bert / "model.safetensors").read_bytes()
    for name, data in {"cut": weights[:-100], "long": (2**60).to_bytes(8, "little") + weights[8:]}.items():
        shutil.copytree(bert, root / name)
        (root / name / "model.safetensors").write_bytes(data)
    shutil.copytree(bert, root / "wordless", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(bert, root / "garbled")
    (root / "garbled" / "tokenizer.json").write_text("{")
    (root / "llama-8b").mkdir()
    (root / "llama-8b/config.json").write_text(json.dumps(LLAMA_8B))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte by byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
