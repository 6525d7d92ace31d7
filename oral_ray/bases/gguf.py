"""GGUF files of llama.cpp: dequantised once to float32, as a safetensors folder in the user's cache.

folder = converted(Path("model-q4.gguf"))       # what `load_folder` reads
"""

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from oral_ray.bases.expected import ExpectedModel
from oral_ray.bases.fingerprint import samples
from oral_ray.bases.foreign import transformers_reads
from oral_ray.errors import BaseModelError
from oral_ray.local.packages import cache_folder
from oral_ray.modalities.causal import Causal
from oral_ray.objects import FileObjects


def converted(path: Path) -> Path:
    """The safetensors folder of a GGUF file; BaseModelError where transformers, or the package gguf, cannot read it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache = cache_folder() / "gguf" / _key(path)
    if (cache / "config.json").exists():
        return cache
    with transformers_reads(f"the GGUF file {path}"):
        try:
            answer: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, local_files_only=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
            loaded, report = answer
        except ImportError:
            raise BaseModelError(f"reading {path.name} needs the package gguf; run pip install gguf") from None
    ExpectedModel(loaded, Causal()).check_report(report, (), str(path))
    # save_pretrained refuses a model with a quantization_config, though its weights are plain float32 by now.
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as name:
        plain.save_pretrained(name)
        tokenizer.save_pretrained(name)
        _drop_made_up_tokens(Path(name), plain.get_input_embeddings().weight.shape[0])
        note = {"source": path.name, "note": "dequantised from GGUF, float32"}
        (Path(name) / "oral_source.json").write_text(json.dumps(note))
        with contextlib.suppress(OSError):  # another process was faster
            Path(name).rename(cache)
            Path(name).mkdir()
    return cache


def _drop_made_up_tokens(folder: Path, num_rows: int) -> None:
    """Take out of a saved tokenizer what the model has no embedding for: transformers gives GPT-2's own special tokens
    to every tokenizer that it converts from GGUF."""
    path, settings_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer, settings = (json.loads(file.read_text(encoding="utf-8")) for file in (path, settings_path))
    made_up = {token["content"] for token in tokenizer["added_tokens"] if token["id"] >= num_rows}
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < num_rows]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    kept = {key: value for key, value in settings.items() if not (isinstance(value, str) and value in made_up)}
    kept.pop("added_tokens_decoder", None)
    settings_path.write_text(json.dumps(kept), encoding="utf-8")


def _key(path: Path) -> str:
    """What tells a GGUF file from others: its name, its size, and its content at 16 places."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name} {size}".encode("utf-8", "surrogateescape"))
    for sample in samples(FileObjects(path.parent), path.name, size):
        digest.update(sample)
    return digest.hexdigest()[:16]
