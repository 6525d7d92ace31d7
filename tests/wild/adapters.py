"""Adapter folders as they are found in the wild, small, with the verdict that is right for each.

`ADAPTERS[name].build(folder)` writes one; `verdict` is "taken" (with the outputs that peft gives on `base`), or a phrase
of the sentence that refuses it. Bases are those of conftest: `tiny_llama`, `tiny_bert` (hidden 32, 2 layers), and
`tiny_gpt2` of the tests here.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LLAMA = {
    f"model.layers.{i}.self_attn.{leaf}": (32, width)
    for i in (0, 1)
    for leaf, width in (("q_proj", 32), ("v_proj", 16))
}
BERT = {f"encoder.layer.{i}.attention.self.{leaf}": (32, 32) for i in (0, 1) for leaf in ("query", "value")}
GPT2 = {f"transformer.h.{i}.attn.c_attn": (32, 96) for i in (0, 1)}
TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class WildAdapter:
    """How to write a folder, on which base it belongs, and "taken" or a phrase of the refusal."""

    build: Callable[[Path], None]
    verdict: str = TAKEN
    base: str = "tiny_llama"


def peft_settings(**changed: Any) -> dict[str, Any]:
    """adapter_config.json as peft 0.21 saves it, less what is null there; a change to None leaves a key out."""
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "auto_mapping": None, "peft_version": "0.21.2", "revision": None,
        "base_model_name_or_path": "tiny", "inference_mode": True, "r": 4, "lora_alpha": 8, "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "use_dora": False, "use_rslora": False, "lora_bias": False, "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {}, "loftq_config": {}, "layers_to_transform": None, "megatron_core": "megatron.core",
        "qalora_group_size": 16,
    }  # fmt: skip
    return {key: value for key, value in (config | changed).items() if key not in changed or value != "LEFT OUT"}


def factors(modules: dict[str, tuple[int, int]], r: int = 4, scale: float = 0.1) -> dict[str, Tensor]:
    """Random factors by peft's names."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (d_in, d_out) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, d_in, generator=rng) * scale
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(d_out, r, generator=rng) * scale
    return tensors


def write(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    """A folder with both files."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS, metadata or {"format": "pt"}
    )
    return folder


def plain(folder: Path) -> None:
    """A sound LoRA of q and v on the tiny Llama."""
    write(folder, peft_settings(), factors(LLAMA))


def _bert(folder: Path) -> None:
    write(folder, peft_settings(target_modules=["query", "value"], task_type=None), factors(BERT))


def config(verdict: str = TAKEN, **changed: Any) -> WildAdapter:
    """The sound adapter with other settings."""
    return WildAdapter(lambda folder: write(folder, peft_settings(**changed), factors(LLAMA)) and None, verdict)


def tensors(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], verdict: str = TAKEN, **changed: Any
) -> WildAdapter:
    """The sound adapter with other tensors."""
    return WildAdapter(lambda folder: write(folder, peft_settings(**changed), change(factors(LLAMA))) and None, verdict)


def names(change: Callable[[str], str], verdict: str = TAKEN) -> WildAdapter:
    """The sound adapter with its tensors named otherwise."""
    return tensors(lambda found: {change(key): tensor for key, tensor in found.items()}, verdict)


def dtype(kind: torch.dtype, verdict: str = TAKEN) -> WildAdapter:
    """The sound adapter with its tensors stored in another type."""
    return tensors(lambda found: {key: tensor.to(kind) for key, tensor in found.items()}, verdict)


def raw(file: str, change: Callable[[bytes], bytes], verdict: str = TAKEN) -> WildAdapter:
    """The sound adapter with other bytes in one of its files."""

    def build(folder: Path) -> None:
        plain(folder)
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return WildAdapter(build, verdict)


def files(change: Callable[[Path], Any], verdict: str = TAKEN) -> WildAdapter:
    """The sound adapter with its files moved, linked, or joined by others."""

    def build(folder: Path) -> None:
        plain(folder)
        change(folder)

    return WildAdapter(build, verdict)


def other(found: dict[str, bytes], verdict: str) -> WildAdapter:
    """A folder of these files only."""

    def build(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, data in found.items():
            (folder / name).write_bytes(data)

    return WildAdapter(build, verdict)


def _swapped(found: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    other = {"A": "B", "B": "A"}
    return {
        re.sub("lora_([AB])", lambda match: f"lora_{other[match[1]]}", key) if module in key else key: tensor
        for key, tensor in found.items()
    }


def _smaller_first_rank(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: (tensor[:2] if ".lora_A." in key else tensor[:, :2]) if "layers.1" in key and "q_proj" in key else tensor
        for key, tensor in found.items()
    }


def _also(**tensors_by_name: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    more = {key.replace("__", "."): tensor for key, tensor in tensors_by_name.items()}
    return lambda found: found | more


def _only(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda found: {key: tensor for key, tensor in found.items() if part in key}


def _spoilt(value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda found: found | {min(found): torch.full_like(found[min(found)], value)}


def _with_layer(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return factors(LLAMA | {"model.layers.9.self_attn.q_proj": (32, 32)})


def _into_subfolder(folder: Path) -> None:
    (folder / "my_adapter").mkdir()
    for file in (WEIGHTS, CONFIG):
        (folder / file).rename(folder / "my_adapter" / file)


def _outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / f"{folder.name}.outside")
    (folder / WEIGHTS).symlink_to(folder.parent / f"{folder.name}.outside")


def _dangling(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to(folder / "nowhere")


def _as_folder(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()


def _twice_in_header(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode().rstrip()
    key, item = next((key, item) for key, item in json.loads(header).items() if key != "__metadata__")
    text = f"{header[:-1]},{json.dumps(key)}:{json.dumps(item)}}}".encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _retyped_header(dtype: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = data[8 : 8 + length].replace(b'"F32"', f'"{dtype}"'.encode())
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return change


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NO_WEIGHTS = "has no adapter_model.safetensors"

ADAPTERS: dict[str, WildAdapter] = {
    "plain": WildAdapter(plain),
    "plain bert": WildAdapter(
        lambda folder: _bert(folder),
        base="tiny_bert",
    ),
    "plain gpt2, fan_in_fan_out": WildAdapter(
        lambda folder: write(folder, peft_settings(target_modules=["c_attn"], fan_in_fan_out=True), factors(GPT2)) and None,
        base="tiny_gpt2",
    ),
    "plain gpt2, fan_in_fan_out wrong": WildAdapter(
        lambda folder: write(folder, peft_settings(target_modules=["c_attn"]), factors(GPT2)) and None, base="tiny_gpt2"
    ),
    # scales and ranks
    "rslora": config(use_rslora=True),
    "rank_pattern": tensors(_smaller_first_rank, rank_pattern={"layers.1.self_attn.q_proj": 2}),
    "rank_pattern and rslora": tensors(_smaller_first_rank, rank_pattern={"layers.1.self_attn.q_proj": 2}, use_rslora=True),
    "rank_pattern of a regex": tensors(_smaller_first_rank, rank_pattern={r"^model\.layers\.1\..*q_proj": 2}),
    "alpha_pattern": config(alpha_pattern={"layers.1.self_attn.q_proj": 2}),
    "alpha missing": config(lora_alpha="LEFT OUT"),
    "alpha float": config(lora_alpha=8.5),
    "alpha null": config("lora_alpha=None: input should be a valid number", lora_alpha=None),
    "alpha string": config("lora_alpha='8': input should be a valid number", lora_alpha="8"),
    "alpha zero": config("lora_alpha=0: input should be greater than 0", lora_alpha=0),
    "alpha negative": config("lora_alpha=-8: input should be greater than 0", lora_alpha=-8),
    "alpha nan": config("lora_alpha=nan", lora_alpha=float("nan")),
    "alpha infinite": config("lora_alpha=inf", lora_alpha=float("inf")),
    "alpha huge": config("lora_alpha=1000000.*: input should be", lora_alpha=10**400),
    "alpha_pattern zero": config("alpha 0 for 'q_proj' .alpha_pattern.", alpha_pattern={"q_proj": 0}),
    "rank_pattern zero": config("rank 0 for 'q_proj' .rank_pattern.", rank_pattern={"q_proj": 0}),
    "rank_pattern null": config("rank_pattern=None: input should be a valid dictionary", rank_pattern=None),
    "rslora null": config(use_rslora=None, fan_in_fan_out=None),
    "r zero": config("r=0: input should be greater than 0", r=0),
    "r bool": config("r=True: input should be a valid integer", r=True),
    "r huge": config("r=1000000000: input should be less than or equal to 1000000", r=10**9),
    "r of another": config("rank 8 .* is in adapter_config.json, its tensors have 4", r=8),
    "r missing": config("rank 8 .* is peft's default, adapter_config.json has none", r="LEFT OUT"),
    # targets
    "regex": config(target_modules=r".*layers\.\d+\.self_attn\.(q|v)_proj"),
    "regex that matches nothing": config("adapts 'q_proj', and base .* has no such module", target_modules="q_proj"),
    "regex that is none": config("'\\(' is no regular expression", target_modules="("),
    "all-linear": WildAdapter(
        lambda folder: write(folder, peft_settings(target_modules="all-linear"), factors({
            f"model.layers.{i}.{path}": sizes
            for i in (0, 1)
            for path, sizes in {
                "self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 16), "self_attn.v_proj": (32, 16),
                "self_attn.o_proj": (32, 32), "mlp.gate_proj": (32, 64), "mlp.up_proj": (32, 64), "mlp.down_proj": (64, 32),
            }.items()
        })) and None
    ),
    "targets null": config(target_modules=None),
    "targets empty": config(r"names no target_modules \(\[\]\)", target_modules=[]),
    "a target that is not there": config(target_modules=["q_proj", "v_proj", "no_such_proj"]),
    "full names": config(target_modules=sorted(LLAMA)),
    "exclude_modules": tensors(_only("v_proj"), exclude_modules=["q_proj"]),
    "exclude_modules of a regex": tensors(_only("v_proj"), exclude_modules=r".*q_proj"),
    "layers_to_transform": tensors(_only("layers.1"), layers_to_transform=[1]),
    "layers_to_transform and pattern": tensors(_only("layers.1"), layers_to_transform=1, layers_pattern="layers"),
    "all layers": config(layers_to_transform=[0, 1]),
    "layers out of range": config("has no such module", layers_to_transform=[7]),
    "of another architecture": WildAdapter(
        lambda folder: write(folder, peft_settings(target_modules=["query", "value"]), factors(BERT)) and None,
        r"adapts \['query', 'value'\], and base .* has no such module; it was made for another architecture",
    ),
    "of a wider base": tensors(
        lambda found: factors({module: (48, d_out) for module, (_, d_out) in LLAMA.items()}),
        "made for another architecture: .* maps 48 to 32 values there and 32 to 32",
    ),
    "of a deeper base": tensors(_with_layer, "2 of its 10 tensors fit no module .*layers.9"),
    "lm_head": WildAdapter(
        lambda folder: write(
            folder, peft_settings(target_modules=["q_proj", "v_proj", "lm_head"]), factors(LLAMA | {"lm_head": (32, 100)})
        ) and None,
        "adapts 'lm_head', which is in no layer",
    ),
    "embedding": config("adapts 'model.embed_tokens', an embedding", target_modules=["q_proj", "embed_tokens"]),
    # more than a plain LoRA
    "dora": config(r"is a DoRA.*use_dora: True", use_dora=True),
    "dora without its key": tensors(
        _also(base_model__model__model__layers__0__self_attn__q_proj__lora_magnitude_vector=torch.ones(32)), "it is a DoRA"
    ),
    "modules_to_save": config(r"modules_to_save: \['lm_head'\]", modules_to_save=["lm_head"]),
    "modules_to_save without its key": tensors(
        _also(base_model__model__score__weight=torch.ones(2, 32)), "score.weight', which is no factor"
    ),
    "bias": config("trains biases of the base .bias: 'all'", bias="all"),
    "bias of another kind": config("has bias: 'zz', and peft knows", bias="zz"),
    "lora_bias": config("has a bias beside every lora_B", lora_bias=True),
    "alora": config("is an aLoRA", alora_invocation_tokens=[5, 6]),
    "target_parameters": config("adapts bare parameters", target_parameters=["mlp.experts.gate_up_proj"]),
    "trainable_token_indices": config("replaces rows of the embedding", trainable_token_indices=[5, 6]),
    "layer_replication": config("whose layers are repeated", layer_replication=[[0, 2], [0, 2]]),
    "resized vocabulary": tensors(
        _also(base_model__model__model__embed_tokens__weight=torch.ones(9, 32)), "where tokens were added"
    ),
    "pissa": config("init_lora_weights='pissa', which takes its factors out of the base", init_lora_weights="pissa"),
    "pissa_niter": config("path_initial_model_for_weight_conversion", init_lora_weights="pissa_niter_4"),
    "olora": config("init_lora_weights='olora'", init_lora_weights="olora"),
    "OLoRA": config("init_lora_weights='OLoRA'", init_lora_weights="OLoRA"),
    "corda": config("init_lora_weights='corda'", init_lora_weights="corda"),
    "loftq": config("init_lora_weights='loftq'", init_lora_weights="loftq"),
    "lora_ga": config("init_lora_weights='lora_ga'", init_lora_weights="lora_ga"),
    "an unknown start": config("init_lora_weights='magic', which the peft known here", init_lora_weights="magic"),
    "gaussian": config(init_lora_weights="gaussian"),
    "eva": config(init_lora_weights="eva", eva_config={"rho": 2.0}),
    "eva_config no mapping": config("peft refuses the adapter_config.json", eva_config=[1]),
    "layers_pattern alone": config("peft refuses the adapter_config.json", layers_pattern="x"),
    "no trainable tokens in a list": config("replaces rows of the embedding", trainable_token_indices=[]),
    "bdlora of defaults": config("is a BD-LoRA", use_bdlora={}),
    "orthogonal": config(init_lora_weights="orthogonal"),
    "no start": config(init_lora_weights=False),
    "ia3": config("its peft_type is 'IA3'", peft_type="IA3"),
    "loha": config("its peft_type is 'LOHA'", peft_type="LOHA"),
    "peft_type lower": config("peft_type is 'lora', peft knows it as 'LORA'", peft_type="lora"),
    "peft_type missing": config("names no peft_type", peft_type="LEFT OUT"),
    "an unknown task_type": config("peft refuses .*Invalid task type: 'FOO'", task_type="FOO"),
    "unknown key": config("has 'use_superlora': True", use_superlora=True, peft_version="0.99.0"),
    "misspelt key": config("has 'Lora_Alpha': 8, .*is 'lora_alpha' meant", lora_alpha="LEFT OUT", Lora_Alpha=8),
    "unknown empty keys": config(use_superlora=False, future_config=None, more={}, peft_version="0.99.0"),
    "wrong base name": config(base_model_name_or_path="meta-llama/Llama-3.1-70B"),
    "no base name": config(base_model_name_or_path=None),
    # names of tensors
    "names with .default": names(lambda key: key.replace(".weight", ".default.weight")),
    "names without base_model.model": names(lambda key: key.removeprefix("base_model.model.")),
    "names with language_model": names(lambda key: key.replace("model.model.model.", "model.model.language_model.model.")),
    "names with one model lost": names(lambda key: key.replace("model.model.model.", "model.model.")),
    "names of nobody": names(
        lambda key: key.replace("self_attn", "attention"), "none of its 8 tensors fits a module .*Llama-like decoder's"
    ),
    "names that are one": tensors(
        lambda found: {key.removeprefix("base_model."): tensor for key, tensor in found.items()}
        | {key.removeprefix("base_model.model."): tensor.clone() for key, tensor in found.items()},
        "none of its 16 tensors fits",
    ),
    "names of MLX": names(
        lambda key: key.removeprefix("base_model.model.").removesuffix(".weight").replace("lora_A", "lora_a").lower(),
        "these are MLX's names",
    ),
    # tensors
    "A and B swapped": names(
        lambda key: key.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B"),
        r"lora_B of 'model.layers.0.self_attn.q_proj' are swapped or transposed \(lora_A \(32, 4\), lora_B \(4, 32\)",
    ),
    "A and B of v alone swapped": tensors(
        lambda found: _swapped(found, "v_proj"), "of 'model.layers.0.self_attn.v_proj' are swapped .*; give each the other"
    ),
    "A and B of v alone transposed": tensors(
        lambda found: {key: tensor.T if "v_proj" in key else tensor for key, tensor in found.items()},
        "lora_B of 'model.layers.0.self_attn.v_proj' are transposed .*; transpose both",
    ),
    "an alpha too far from the others": config(
        r"of '.*v_proj' is 2.5e\+28, that of '.*q_proj' 2.5e-20; float32 .* of 1e\+48 times; correct alpha_pattern",
        lora_alpha=1e-19, alpha_pattern={"v_proj": 1e29},
    ),
    "an alpha that makes nothing of v": config(
        "float32 holds no lora_B that makes up for", lora_alpha=1e29, alpha_pattern={"v_proj": 1e-19}
    ),
    "an alpha of almost nothing": config("lora_alpha=4.94066e-324; it must be from 1e-30 to", lora_alpha=5e-324),
    "ms-swift": WildAdapter(
        lambda folder: write(
            folder,
            peft_settings(
                swift_type="LORA", lora_dtype="bf16", lorap_lr_ratio=16.0, lorap_emb_lr=1e-6, use_qa_lora=False,
                use_merged_linear=False, enable_lora=None, model_key_mapping=None,
            ),
            {
                key.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
                for key, tensor in factors(LLAMA).items()
            },
        ) and None
    ),
    "ms-swift's merged linear": config("adapts parts of fused projections in ms-swift", use_merged_linear=True),
    "ms-swift's LongLoRA": config("ms-swift calls it 'LONGLORA'", swift_type="LONGLORA"),
    "bf16": dtype(torch.bfloat16),
    "fp16": dtype(torch.float16),
    "f64": dtype(torch.float64),
    "fp8 e4m3": dtype(torch.float8_e4m3fn),
    "fp8 e5m2": dtype(torch.float8_e5m2),
    "int8": dtype(torch.int8, "is stored as int8"),
    "fp4": raw(WEIGHTS, _retyped_header("F4"), "is stored as F4"),
    "e8m0": raw(WEIGHTS, _retyped_header("F8_E8M0"), "is stored as F8_E8M0"),
    "zero": tensors(lambda found: {k: t * 0 if ".lora_B." in k else t for k, t in found.items()}),
    "A only": tensors(_only("lora_A"), "lacks 4 tensors of the modules that it targets.*layers.0.self_attn.q_proj.lora_B"),
    "one layer missing": tensors(_only("layers.1"), "lacks 4 tensors of the modules that it targets.*layers.0"),
    "a module left out": config("4 of its tensors belong to modules that its targets leave", target_modules=["q_proj"]),
    "nan": tensors(_spoilt(torch.nan), "values that are not finite in base_model"),
    "inf": tensors(_spoilt(torch.inf), "values that are not finite in base_model"),
    "zero ranks": tensors(lambda found: {k: t[:0] if "lora_A" in k else t[:, :0] for k, t in found.items()}, "is empty"),
    "3-D": tensors(lambda found: {k: t[None] for k, t in found.items()}, r"has shape \(1, 4, 32\)"),
    "another tensor": tensors(_also(base_model__model__extra=torch.zeros(3)), "extra', which is no factor of a LoRA"),
    "no tensors": tensors(lambda found: {}, "has no tensors"),
    # files
    "metadata": WildAdapter(lambda folder: write(folder, peft_settings(), factors(LLAMA), {"note": "x" * 5000}) and None),
    "no metadata": raw(WEIGHTS, lambda data: save(factors(LLAMA))),
    "a trainer's checkpoint": files(lambda folder: (folder / "optimizer.pt").write_bytes(b"x")),
    "a name twice": raw(WEIGHTS, _twice_in_header, "stands there twice"),
    "truncated": raw(WEIGHTS, lambda data: data[:-100], "cut off: .* where its header needs"),
    "cut in its header": raw(WEIGHTS, lambda data: data[:50], "is cut off or no safetensors file"),
    "zero bytes": raw(WEIGHTS, lambda data: b"", "has no bytes"),
    "a pickle by another name": raw(WEIGHTS, lambda data: b"PK\x03\x04rest", "is in truth a pickle"),
    "an LFS pointer": raw(WEIGHTS, lambda data: LFS, "Git LFS pointer.*git lfs pull"),
    "a link outside": files(_outside),
    "a dangling link": files(lambda folder: _dangling(folder, WEIGHTS), "is a link to .*nowhere', which is not there"),
    "a dangling config": files(lambda folder: _dangling(folder, CONFIG), "is a link to .*nowhere', which is not there"),
    "a folder for a file": files(lambda folder: _as_folder(folder, WEIGHTS), "adapter_model.safetensors is a folder"),
    "upper case": files(lambda f: (f / WEIGHTS).rename(f / "adapter_model.SAFETENSORS"), "SAFETENSORS.; rename it"),
    "bin only": files(lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "adapter_model.bin, a pickle"),
    "no weights": files(lambda folder: (folder / WEIGHTS).unlink(), NO_WEIGHTS),
    "no config": files(lambda folder: (folder / CONFIG).unlink(), "adapter_config.json is missing beside adapter_model"),
    "in a subfolder": files(_into_subfolder, "there is one in .*my_adapter: name that folder"),
    "config with a byte order mark": raw(CONFIG, lambda data: b"\xef\xbb\xbf" + data, "UTF-8 with a byte order mark"),
    "config in UTF-16": raw(CONFIG, lambda data: data.decode().encode("utf-16"), "is UTF-16"),
    "config in Latin-1": raw(CONFIG, lambda data: data.replace(b"tiny", b"caf\xe9"), "is not UTF-8 .byte 0xe9"),
    "config with half a character": raw(CONFIG, lambda data: data.replace(b"tiny", b"\\ud800"), "half of a character"),
    "config with CRLF": raw(CONFIG, lambda data: data.replace(b",", b",\r\n")),
    "config of a list": raw(CONFIG, lambda data: b"[]", "holds a list, no JSON object"),
    "config empty": raw(CONFIG, lambda data: b"", "is empty"),
    "config cut": raw(CONFIG, lambda data: data[:-20], "is not valid JSON"),
    "config nested": raw(CONFIG, lambda data: b"[" * 100_000, "is nested too deeply"),
    "config with a key twice": raw(CONFIG, lambda data: data[:-1] + b', "lora_alpha": 800}', "'lora_alpha' stands"),
    "config as an LFS pointer": raw(CONFIG, lambda data: LFS, "adapter_config.json is a Git LFS pointer"),
    "provenance of in-toto": files(lambda f: (f / "provenance.json").write_text('{"_type": "https://in-toto.io/Statement/v1"}')),
    "provenance of a newer version": files(
        lambda f: (f / "provenance.json").write_text('{"origin": "trained", "base": "x", "base_fingerprint": "", "new": 1}')
    ),
    "provenance that is no JSON": files(lambda f: (f / "provenance.json").write_bytes(b"\xff")),
    # adapters of other tools, and what is none
    "diffusers": other({"pytorch_lora_weights.safetensors": save(factors(LLAMA))}, "is a LoRA file of diffusers"),
    "kohya": other({"style.safetensors": save({"lora_unet_mid.lora_down.weight": torch.ones(2, 2)})}, "LoRA file of kohya"),
    "mlx": other({"adapters.safetensors": b"", CONFIG: b'{"fine_tune_type": "lora"}'}, "is one of MLX"),
    "gguf": other({"adapter.gguf": b"GGUF"}, "is a GGUF file of llama.cpp"),
    "a whole model": other({"config.json": b"{}", "model.safetensors": b""}, "it is a whole model"),
    "an empty folder": other({}, "adapter_config.json is missing; check the path"),
}  # fmt: skip

if os.name == "posix":  # a name whose bytes are no text
    ADAPTERS["a config in a folder of odd bytes"] = files(
        lambda folder: os.mkdir(os.fsencode(folder) + b"/caf\xe9")  # noqa: PTH102
    )
