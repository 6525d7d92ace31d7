"""How the tensors of a checkpoint are stored: as plain floats, or quantised, by which method. No torch.

A quantised weight is integers, or floats of 8 bits and less, beside scales under other names. Read without its scales it
is a matrix of raw codes, which has the right shape and means nothing, so a quantised checkpoint is refused by its name.
"""

from collections.abc import Mapping
from typing import Any

from oral_ray.bases.headers import FLOAT_DTYPES, TensorEntry
from oral_ray.errors import BaseModelError

_METHODS = {
    "bitsandbytes": "bitsandbytes", "bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes",
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FBGEMM FP8", "mxfp4": "MXFP4", "hqq": "HQQ", "aqlm": "AQLM",
    "eetq": "EETQ", "quanto": "quanto", "modelopt": "NVIDIA ModelOpt", "compressed-tensors": "compressed-tensors",
    "torchao": "torchao", "bitnet": "BitNet",
}  # fmt: skip
_COMPANIONS = {
    ".SCB": "bitsandbytes 8-bit", ".absmax": "bitsandbytes 4-bit", ".quant_map": "bitsandbytes 4-bit",
    ".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors", ".weight_scale_inv": "FP8", ".weight_scale_2": "NVIDIA ModelOpt",
    ".codebooks": "AQLM", ".W_q": "HQQ", "_blocks": "MXFP4",
}  # fmt: skip
"""Endings of names that only a quantised checkpoint has, and whose they are."""
_SMALL_FLOATS = {
    "F8_E4M3": "FP8", "F8_E5M2": "FP8", "F8_E4M3FNUZ": "FP8 of AMD", "F8_E5M2FNUZ": "FP8 of AMD",
    "F8_E8M0": "block scales (F8_E8M0) of an MX format", "F6_E2M3": "MXFP6", "F6_E3M2": "MXFP6", "F4": "FP4",
}  # fmt: skip
_REMEDY = "take the original checkpoint, or dequantise this one and save it as bfloat16 or float32"


def check_plain(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry], where: str) -> None:
    """BaseModelError, with the method's name, where weights are stored quantised.

    A `quantization_config` over plain floats is one that somebody forgot to remove: the weights are as they lie there.
    """
    settings = quantization(config)
    method = str(settings.get("quant_method") or settings.get("quant_type") or "")
    stored = _quantised_tensor(tensors)
    if stored is None:
        if method == "bitnet":
            raise BaseModelError(
                f"{where} is a BitNet model: config.json has its weights rounded in every forward pass, which adapters "
                "here are not trained for; take another base"
            )
        return
    name, by_name = stored
    entry = tensors[name]
    how = _described(method, settings) if method else by_name
    scales = "" if method or not _lacks_scales(entry, tensors) else " without scales, from which no weight can be told"
    raise BaseModelError(f"{where} is quantised ({how}){scales}: {name!r} is stored as {entry.dtype}; {_REMEDY}")


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says about quantisation, of the whole or of its language part; empty where it says nothing."""
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, Mapping):
            for key in ("quantization_config", "compression_config"):
                if isinstance(part.get(key), Mapping) and part[key]:
                    return part[key]
    return {}


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model, as transformers has to read it where the weights are plain floats."""
    dropped = ("quantization_config", "compression_config")
    plain = {key: value for key, value in config.items() if key not in dropped}
    return {
        key: without_quantization(value) if key in ("text_config", "llm_config") and isinstance(value, dict) else value
        for key, value in plain.items()
    }


def _quantised_tensor(tensors: Mapping[str, TensorEntry]) -> tuple[str, str] | None:
    """A tensor that only a quantised checkpoint has, and the method that it speaks for; the weight rather than a scale."""
    found: list[tuple[int, str, str]] = []
    methods = {ending: method for ending, method in _COMPANIONS.items() if any(n.endswith(ending) for n in tensors)}
    for name, entry in tensors.items():
        companion = next((method for ending, method in methods.items() if name.endswith(ending)), None)
        if entry.dtype in _SMALL_FLOATS:
            found.append((entry.dtype == "F8_E8M0", name, _SMALL_FLOATS[entry.dtype]))
        elif entry.dtype not in FLOAT_DTYPES and len(entry.shape) >= 2 and name.endswith((".weight", "_proj")):
            named = next(iter(methods.values()), f"raw {entry.dtype} by a method that config.json does not name")
            found.append((0, name, named))
        elif companion and (companion != "MXFP4" or entry.dtype == "U8"):
            found.append((entry.dtype in FLOAT_DTYPES, name, companion))
    if not found:
        return None
    _, name, method = min(found)
    return name, method


def _described(method: str, settings: Mapping[str, Any]) -> str:
    bits = settings.get("bits") or (8 if settings.get("load_in_8bit") else 4 if settings.get("load_in_4bit") else None)
    details = (settings.get("bnb_4bit_quant_type") if bits == 4 else None, settings.get("format"))
    words = (_METHODS.get(method, method), f"{bits}-bit" if bits else None, *details)
    return " ".join(str(word) for word in words if word)


def _lacks_scales(entry: TensorEntry, tensors: Mapping[str, TensorEntry]) -> bool:
    is_code = entry.dtype.startswith(("F8_E4", "F8_E5", "I", "U"))
    return is_code and not any("scale" in name or name.endswith((".SCB", ".absmax")) for name in tensors)
