"""Checkpoint folders as they are found in the wild, made small at test time, and what has to be said of each.

`CHECKPOINTS[kind]` makes one from a tiny causal model (`conftest.tiny_llama`) in a folder that is not there yet. Its
verdict is empty where the base is taken, with the weights that lie there; else a part of the reason why it is refused.
"""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save_file
from torch import Tensor

Weights = dict[str, Tensor]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 12345\n"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Kind(NamedTuple):
    """How a folder is made, and a part of the reason for which it is refused; empty where it is taken."""

    make: Callable[[Path, Path], None]
    reason: str = ""


def weights_of(folder: Path, name: str = SINGLE) -> Weights:
    """The tensors of a file, in memory of their own: those of `load_file` are the mapped file, which tests overwrite."""
    return load((folder / name).read_bytes())


def put(folder: Path, weights: Mapping[str, Tensor], name: str = SINGLE) -> None:
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name, metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reshaped(change: Callable[[Weights], Mapping[str, Tensor]], **config: Any) -> Callable[[Path, Path], None]:
    """The base with its weights changed by a function, and values of its config."""

    def make(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        put(target, change(weights_of(target)))
        configure(target, **config)

    return make


def edited(edit: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """The base with its folder edited by a function."""

    def make(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        edit(target)

    return make


def prefixed(prefix: str) -> Callable[[Path, Path], None]:
    return reshaped(lambda weights: {prefix + name: value for name, value in weights.items()})


def without(*names: str, **config: Any) -> Callable[[Path, Path], None]:
    return reshaped(lambda w: {name: value for name, value in w.items() if name not in names}, **config)


def beside(**tensors: Tensor) -> Callable[[Path, Path], None]:
    return reshaped(lambda weights: weights | {name.replace("__", "."): value for name, value in tensors.items()})


def other_model(class_name: str, config_name: str, edit: Callable[[Path], Any] | None = None, **config: Any):
    """A base of another class, with random weights and the tokenizer of the tiny one."""

    def make(source: Path, target: Path) -> None:
        import transformers

        target.mkdir()
        for path in source.glob("tokenizer*"):
            shutil.copy(path, target)
        rows = json.loads((source / "config.json").read_text())["vocab_size"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            settings = getattr(transformers, config_name)(vocab_size=rows, pad_token_id=0, **config)
            getattr(transformers, class_name)(settings).save_pretrained(target)
        if edit:
            edit(target)

    return make


def shard(folder: Path, index: Mapping[str, str] | None = None) -> None:
    """Two shards in place of the single file, with an index that may promise more."""
    weights = weights_of(folder)
    names = sorted(weights)
    for file, part in zip(SHARDS, (names[:9], names[9:]), strict=True):
        put(folder, {name: weights[name] for name in part}, file)
    places = {name: SHARDS[number >= 9] for number, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places | dict(index or {})}))
    (folder / SINGLE).unlink()


def sharded(change: Callable[[Path], Any], index: Mapping[str, str] | None = None) -> Callable[[Path, Path], None]:
    def edit(folder: Path) -> None:
        shard(folder, index)
        change(folder)

    return edited(edit)


def text_config(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    return edited(lambda f: (f / "config.json").write_bytes(change((f / "config.json").read_bytes())))


def added(text: str) -> Callable[[Path, Path], None]:
    """The base with more text at the end of its config.json, as a file may hold that json.dumps would not write."""
    return text_config(lambda data: data.rstrip()[:-1] + f", {text}}}".encode())


def adapter_beside(folder: Path) -> None:
    torch.manual_seed(0)
    factors = {f"base_model.model.{Q_PROJ.removesuffix('weight')}lora_{x}.weight": torch.randn(4, 32) for x in "A"}
    factors |= {f"base_model.model.{Q_PROJ.removesuffix('weight')}lora_B.weight": torch.randn(32, 4)}
    put(folder, factors, "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def fused(weights: Weights, extra: Callable[[str, Tensor], Weights]) -> Weights:
    """Weights with every projection of the layers replaced by what a quantisation stores for it."""
    stored: Weights = {}
    for name, value in weights.items():
        stored |= extra(name.removesuffix("weight"), value) if "proj" in name else {name: value}
    return stored


def fp8(scale: str | None) -> Callable[[Weights], Weights]:
    def stored(name: str, value: Tensor) -> Weights:
        codes = {f"{name}weight": (value * 100).to(torch.float8_e4m3fn)}
        return codes | ({f"{name}{scale}": torch.full((1, 1), 0.01)} if scale else {})

    return lambda weights: fused(weights, stored)


def gptq(with_order: bool) -> Callable[[Weights], Weights]:
    def stored(name: str, value: Tensor) -> Weights:
        rows, columns = value.shape
        found = {
            f"{name}qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
            f"{name}qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
            f"{name}scales": torch.ones(1, rows, dtype=torch.float16),
        }
        return found | ({f"{name}g_idx": torch.zeros(columns, dtype=torch.int32)} if with_order else {})

    return lambda weights: fused(weights, stored)


def four_bit(state: str | None) -> Callable[[Weights], Weights]:
    def stored(name: str, value: Tensor) -> Weights:
        codes = {f"{name}weight": torch.zeros(value.numel() // 2, 1, dtype=torch.uint8)}
        if state is None:
            return codes
        scales = {f"{name}weight.absmax": torch.zeros(8, dtype=torch.uint8), f"{name}weight.quant_map": torch.zeros(16)}
        return codes | scales | {f"{name}weight.quant_state.{state}": torch.zeros(20, dtype=torch.uint8)}

    return lambda weights: fused(weights, stored)


def eight_bit(weights: Weights) -> Weights:
    return fused(
        weights,
        lambda name, value: {f"{name}weight": value.to(torch.int8), f"{name}SCB": torch.ones(value.shape[0])},
    )


def mxfp4(weights: Weights) -> Weights:
    return fused(
        weights,
        lambda name, value: {
            f"{name}weight_blocks": torch.zeros(value.shape[0], 1, 16, dtype=torch.uint8),
            f"{name}weight_scales": torch.zeros(value.shape[0], 1, dtype=torch.uint8),
        },
    )


def small_tokenizer_model(folder: Path) -> None:
    """A model of 100 tokens with a tokenizer of more."""
    weights = weights_of(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:100].clone()
    put(folder, weights)
    configure(folder, vocab_size=100)


def nameless_tokens(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in settings.items() if key not in ("pad_token", "eos_token")})
    )


def rewritten_header(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def edit(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = change(data[8 : 8 + length])
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])

    return edited(edit)


def with_code(model_type: str) -> Callable[[Path, Path], None]:
    """A base that brings code of its own, which leaves a file behind where it is run."""

    def edit(folder: Path) -> None:
        configure(folder, model_type=model_type, auto_map={
            "AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM",
        })  # fmt: skip
        for name in ("configuration_x.py", "modeling_x.py"):
            (folder / name).write_text(f"import pathlib\npathlib.Path({str(folder / 'RUN')!r}).touch()\n")

    return edited(edit)


def as_masked_model(folder: Path) -> None:
    weights = weights_of(folder)
    assert not any("pooler" in name for name in weights)


def drop_expert(folder: Path) -> None:
    weights = weights_of(folder)
    lost = next(name for name in sorted(weights) if "experts.2" in name)
    put(folder, {name: value for name, value in weights.items() if name != lost})


def renumber_expert(folder: Path) -> None:
    weights = weights_of(folder)
    put(folder, {name.replace("experts.1.", "experts.7."): value for name, value in weights.items()})


_GQA = TINY | {"num_key_value_heads": 2}
_ONES = torch.ones(32, 32)
_QUANTISED_BY = {
    "gptq": {"bits": 4, "group_size": 128, "quant_method": "gptq"},
    "awq": {"bits": 4, "quant_method": "awq", "version": "gemm"},
    "nf4": {"load_in_4bit": True, "quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"},
    "af4": {"load_in_4bit": True, "quant_method": "bitsandbytes", "bnb_4bit_quant_type": "af4"},
    "int8": {"load_in_8bit": True, "quant_method": "bitsandbytes"},
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "compressed": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "mxfp4": {"quant_method": "mxfp4"},
    "bitnet": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
}  # fmt: skip


def quantised(change: Callable[[Weights], Mapping[str, Tensor]], method: str) -> Callable[[Path, Path], None]:
    return reshaped(change, quantization_config=_QUANTISED_BY[method])


TAKEN: dict[str, Callable[[Path, Path], None]] = {
    "as it is": edited(lambda folder: None),
    "shards": edited(shard),
    "index names a tensor that no shard has": edited(lambda f: shard(f, {"model.rotary_emb.inv_freq": SHARDS[0]})),
    "Mistral's own copy beside": sharded(lambda f: put(f, {"layers.0.wq": _ONES}, "consolidated.safetensors")),
    "index that names the single file": edited(
        lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {Q_PROJ: SINGLE}}))
    ),
    "bfloat16": reshaped(lambda w: {name: value.to(torch.bfloat16) for name, value in w.items()}),
    "float64": reshaped(lambda w: {name: value.double() for name, value in w.items()}),
    "body without its prefix": reshaped(lambda w: {name.removeprefix("model."): value for name, value in w.items()}),
    "rotary buffers of old": beside(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)),
    "tied, head left out": without("lm_head.weight", tie_word_embeddings=True),
    "quantization_config left over": reshaped(lambda w: w, quantization_config=_QUANTISED_BY["nf4"]),
    "code for a known type": with_code("llama"),
    "pickle and variant beside": edited(
        lambda f: [(f / name).write_bytes(b"x") for name in ("pytorch_model.bin", "model.fp16.safetensors", "train.py")]
    ),
    "config with Infinity": added('"rope_x": Infinity'),
    "config with CRLF": text_config(lambda data: data.replace(b"\n", b"\r\n")),
    "masked language model": other_model("BertForMaskedLM", "BertConfig", as_masked_model, **TINY),
    "classifier over an encoder": other_model("BertForSequenceClassification", "BertConfig", **TINY),
    "ELECTRA": other_model("ElectraForPreTraining", "ElectraConfig", embedding_size=16, **TINY),
    "CamemBERT": other_model("CamembertForMaskedLM", "CamembertConfig", **TINY),
    "MPNet": other_model("MPNetForMaskedLM", "MPNetConfig", **TINY),
    "Mixtral": other_model("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **_GQA),
    "GPT-2": other_model("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4),
}
"""Kinds that are loaded with the weights that lie there."""

REFUSED: dict[str, Kind] = {
    "bare body": Kind(
        reshaped(
            lambda w: {name.removeprefix("model."): value for name, value in w.items() if "lm_head" not in name},
            architectures=["LlamaModel"],
        ),
        "lacks 'lm_head.weight' of the 21 tensors of a LlamaForCausalLM; it is the headless model or a classifier",
    ),
    "classifier": Kind(
        reshaped(
            lambda w: {n: v for n, v in w.items() if "lm_head" not in n} | {"score.weight": torch.ones(2, 32)},
            architectures=["LlamaForSequenceClassification"],
        ),
        "lacks 'lm_head.weight' of the 21 tensors of a LlamaForCausalLM; it is the headless model or a classifier",
    ),
    "tied classifier": Kind(
        reshaped(
            lambda w: {n: v for n, v in w.items() if "lm_head" not in n} | {"score.weight": torch.ones(2, 32)},
            tie_word_embeddings=True,
        ),
        "holds 'score.weight', which a LlamaForCausalLM of this config.json does not use",
    ),
    "head left out": Kind(without("lm_head.weight"), "lacks 'lm_head.weight' of the 21 tensors"),
    "norm left out": Kind(without("model.norm.weight"), "lacks 'model.norm.weight' of the 21 tensors"),
    "embedding left out": Kind(without("model.embed_tokens.weight"), "lacks 'model.embed_tokens.weight' of the 21"),
    "expert left out": Kind(
        other_model("MixtralForCausalLM", "MixtralConfig", drop_expert, num_local_experts=4, **_GQA),
        "are not numbered from 0 to 2 (",
    ),
    "experts that do not count": Kind(
        other_model("MixtralForCausalLM", "MixtralConfig", renumber_expert, num_local_experts=4, **_GQA),
        "are not numbered from 0 to 3 (",
    ),
    "fewer layers in config": Kind(
        edited(lambda f: configure(f, num_hidden_layers=1)),
        "holds 'model.layers.1.input_layernorm.weight' and 8 more, which a LlamaForCausalLM of this config.json does",
    ),
    "more layers in config": Kind(
        edited(lambda f: configure(f, num_hidden_layers=3)),
        "lacks 'model.layers.2.self_attn.q_proj.weight' and 8 more of the 30 tensors of a LlamaForCausalLM",
    ),
    "biases without a config": Kind(
        beside(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
        "holds 'model.layers.0.self_attn.q_proj.bias', which a LlamaForCausalLM of this config.json does not use",
    ),
    "a tensor twice": Kind(
        beside(layers__0__self_attn__q_proj__weight=_ONES),
        f"holds '{Q_PROJ}' 2 times, as 'layers.0.self_attn.q_proj.weight' and '{Q_PROJ}'",
    ),
    "another shape": Kind(
        reshaped(lambda w: w | {"model.norm.weight": torch.ones(16)}),
        "'model.norm.weight' is (16,), config.json says (32,)",
    ),
    "language_model. before": Kind(
        prefixed("language_model."), "all of its names start with 'language_model.'; save it"
    ),
    "base_model.model. before": Kind(prefixed("base_model.model."), "all of its names start with 'base_model.model.'"),
    "module. before": Kind(prefixed("module."), "all of its names start with 'module.'; save it without this prefix"),
    "other names": Kind(
        reshaped(lambda w: {f"x{number}": value for number, value in enumerate(w.values())}),
        "its tensors have other names, like 'x0'; upload the checkpoint that belongs to config.json",
    ),
    "class of another type": Kind(
        edited(lambda f: configure(f, architectures=["BertModel"])),
        "config.json says model_type 'llama' and architectures 'BertModel', which is a 'bert'",
    ),
    "adapter beside": Kind(
        edited(adapter_beside), "holds an adapter (adapter_config.json) beside the weights, which tra"
    ),
    "single file and shards": Kind(
        sharded(lambda f: put(f, {Q_PROJ: _ONES})), f"holds weights twice, model.safetensors and shards ('{SHARDS[0]}')"
    ),
    "shard that is not named": Kind(
        sharded(lambda f: put(f, {Q_PROJ: _ONES}, "model-00003-of-00003.safetensors")),
        f"holds a shard that {INDEX} does not name: 'model-00003-of-00003.safetensors'",
    ),
    "a tensor in two shards": Kind(
        sharded(lambda f: put(f, weights_of(f, SHARDS[1]) | {"lm_head.weight": _ONES}, SHARDS[1])),
        f"'lm_head.weight' is in two shards, '{SHARDS[0]}' and '{SHARDS[1]}'",
    ),
    "shard missing": Kind(sharded(lambda f: (f / SHARDS[1]).unlink()), f"shard '{SHARDS[1]}' of "),
    "shard of another folder": Kind(sharded(lambda f: None, {"x": "../x.safetensors"}), "shard '../x.safetensors' of "),
    "shard in pickle": Kind(
        sharded(lambda f: (f / "x.bin").touch(), {"x": "x.bin"}), "names 'x.bin', which is no safetensors file (pickle"
    ),
    "index without names": Kind(sharded(lambda f: (f / INDEX).write_text("{}")), "has no weight_map; upload it again"),
    "shard of no length": Kind(
        sharded(lambda f: (f / SHARDS[1]).write_bytes(b"")), "there is no header in a file of 0 bytes; it was cut off"
    ),
    "no index": Kind(sharded(lambda f: (f / INDEX).unlink()), f"has 2 shards and no {INDEX}; add the index"),
    "variant only": Kind(
        edited(lambda f: (f / SINGLE).rename(f / "model.fp16.safetensors")),
        "has weights under another name (model.fp16.safetensors); rename it to model.safetensors",
    ),
    "weights elsewhere": Kind(
        edited(lambda f: configure(f, transformers_weights="other.safetensors")),
        "sends transformers to another weight file (transformers_weights = 'other.safetensors')",
    ),
    "pickle only": Kind(
        edited(lambda f: (f / SINGLE).rename(f / "pytorch_model.bin")), "has pickle weights only (pytorch_model.bin)"
    ),
    "pickle by another name": Kind(
        edited(lambda f: torch.save(weights_of(f), f / SINGLE)), "is a pickle or zip archive by another name"
    ),
    "web page for weights": Kind(
        edited(lambda f: (f / SINGLE).write_text("<!DOCTYPE html><html><body>404</body></html>")),
        "is a web page, not we",
    ),
    "LFS pointer": Kind(edited(lambda f: (f / SINGLE).write_text(LFS_POINTER)), "is a Git LFS pointer, not the file"),
    "LFS pointer for config": Kind(
        edited(lambda f: (f / "config.json").write_text(LFS_POINTER)), "is a Git LFS pointer, not the file"
    ),
    "partial download": Kind(
        edited(lambda f: (f / SINGLE).rename(f / "model.safetensors.incomplete")), "that is not fully downloaded"
    ),
    "GPTQ": Kind(quantised(gptq(True), "gptq"), "is quantised (GPTQ 4-bit): 'model.layers.0."),
    "AWQ": Kind(quantised(gptq(False), "awq"), "is quantised (AWQ 4-bit)"),
    "GPTQ without a config": Kind(reshaped(gptq(True)), "is quantised (GPTQ or AWQ): 'model.layers.0."),
    "bitsandbytes 4-bit": Kind(
        quantised(four_bit("bitsandbytes__nf4"), "nf4"), "is quantised (bitsandbytes 4-bit nf4)"
    ),
    "4-bit of an unknown type": Kind(quantised(four_bit("bitsandbytes__af4"), "af4"), "(bitsandbytes 4-bit af4)"),
    "4-bit without a config": Kind(
        reshaped(four_bit("bitsandbytes__nf4")), "is quantised (bitsandbytes 4-bit): 'model"
    ),
    "raw codes": Kind(reshaped(four_bit(None)), "is quantised (raw U8 by a method that config.json does not name)"),
    "bitsandbytes 8-bit": Kind(quantised(eight_bit, "int8"), "is quantised (bitsandbytes 8-bit): 'model.layers.0."),
    "8-bit without a config": Kind(reshaped(eight_bit), "is quantised (bitsandbytes 8-bit): 'model.layers.0."),
    "FP8 in blocks": Kind(quantised(fp8("weight_scale_inv"), "fp8"), "is quantised (FP8): 'model.layers.0."),
    "FP8 without scales": Kind(
        reshaped(fp8(None)), "is quantised (FP8) without scales, from which no weight can be told"
    ),
    "compressed-tensors": Kind(
        quantised(fp8("weight_scale"), "compressed"), "is quantised (compressed-tensors float-quantized): 'model.lay"
    ),
    "MXFP4": Kind(quantised(mxfp4, "mxfp4"), "is quantised (MXFP4): 'model.layers.0."),
    "BitNet": Kind(quantised(dict, "bitnet"), "is a BitNet model: config.json has its weights rounded"),
    "block scales alone": Kind(
        beside(model__layers__0__scale=torch.zeros(4, dtype=torch.float8_e8m0fnu)),
        "is quantised (block scales (F8_E8M0)",
    ),
    "FP8 of AMD": Kind(beside(model__x=torch.zeros(4, dtype=torch.float8_e4m3fnuz)), "is quantised (FP8 of AMD)"),
    "norm in whole numbers": Kind(
        reshaped(lambda w: w | {"model.norm.weight": torch.ones(32, dtype=torch.int32)}),
        "'model.norm.weight' is stored as I32, which is no weight of a LlamaForCausalLM",
    ),
    "complex numbers": Kind(
        beside(model__rope=torch.zeros(4, dtype=torch.complex64)),
        "holds 'model.rope', which a LlamaForCausalLM of this",
    ),
    "F4 that has too many bytes": Kind(
        rewritten_header(lambda header: header.replace(b'"F32"', b'"F4" ', 1)), "its shape needs"
    ),
    "code for an unknown type": Kind(with_code("novelx"), "its own code (auto_map) is never run"),
    "type in capitals": Kind(
        edited(lambda f: configure(f, model_type="Llama")), "not know model type 'Llama'; write 'lla"
    ),
    "whole number for a switch": Kind(edited(lambda f: configure(f, num_hidden_layers=True)), "num_hidden_layers=True"),
    "broken number": Kind(edited(lambda f: configure(f, hidden_size=32.0)), "hidden_size=32.0"),
    "last of two equal keys": Kind(added('"num_hidden_layers": 1'), "holds 'model.layers.1.input_layernorm.weight'"),
    "byte order mark": Kind(
        text_config(lambda data: b"\xef\xbb\xbf" + data), "starts with a byte order mark, which trans"
    ),
    "UTF-16": Kind(text_config(lambda data: data.decode().encode("utf-16")), "is no UTF-8 text (byte 0), which"),
    "Latin-1": Kind(text_config(lambda data: data.replace(b"{", b'{"x": "caf\xe9",', 1)), "is no UTF-8 text (byte 10)"),
    "comment": Kind(text_config(lambda data: b"// by hand\n" + data), "is not valid JSON: Expecting value"),
    "endless number": Kind(added(f'"x": {"9" * 5000}'), "is not valid JSON: Exceeds the limit (4300 digits)"),
    "config of 6 MB": Kind(
        edited(lambda f: configure(f, pad="x" * 6_000_000)), "at most 5 MB are read; remove what is no"
    ),
    "no tokenizer": Kind(
        edited(lambda f: [p.unlink() for p in f.glob("tokenizer*")]), "has no tokenizer (tokenizer.json,"
    ),
    "settings of a tokenizer only": Kind(
        edited(lambda f: (f / "tokenizer.json").unlink()), "has no tokenizer (tokenizer."
    ),
    "broken tokenizer": Kind(
        edited(lambda f: (f / "tokenizer.json").write_text("{")), "transformers cannot read the tokenizer at"
    ),
    "tokenizer larger than the model": Kind(
        edited(small_tokenizer_model), "the tokenizer has token ids up to 720, the model 100 embeddings"
    ),
    "no token to pad with": Kind(edited(nameless_tokens), "the tokenizer names neither a pad_token nor an eos_token"),
    "outputs without names": Kind(
        edited(lambda f: configure(f, return_dict=False)), "config.json says return_dict = false, with which"
    ),
    "not a number": Kind(
        reshaped(lambda w: w | {"model.norm.weight": torch.full((32,), torch.nan)}),
        "model.norm.weight holds values that",
    ),
}
"""Kinds that are refused, and a part of the reason."""

CHECKPOINTS: dict[str, Kind] = {kind: Kind(make) for kind, make in TAKEN.items()} | REFUSED
