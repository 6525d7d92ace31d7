"""A GGUF file is loaded whole, dequantised, or refused by what it lacks; one that was replaced is converted again."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import TINY, weights_of

from oral_ray.bases.loading import open_base
from oral_ray.errors import BaseModelError

gguf = pytest.importorskip("gguf")

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
}  # fmt: skip


def write(source: Path, path: Path, change: float = 0.0, without: str = "nothing") -> None:
    """The tiny causal model as a GGUF file of plain floats, with its tokenizer, without the tensors of a name."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(TINY["hidden_size"])
    writer.add_block_count(TINY["num_hidden_layers"])
    writer.add_feed_forward_length(TINY["intermediate_size"])
    writer.add_head_count(TINY["num_attention_heads"])
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokenizer["vocab"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_types([1] * len(tokenizer["vocab"]))
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(0)
    for name, value in weights_of(source).items():
        if without in name:
            continue
        for old, new in _NAMES.items():
            name = name.replace(old, new)
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2], 0)
        if heads:  # llama.cpp keeps the rows of a head in another order
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(name, (value + change).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oral_ray.bases.gguf.cache_folder", lambda: tmp_path / "cache")


def test_a_gguf_file_has_the_weights_that_lie_in_it(tiny_llama: Path, tmp_path: Path):
    write(tiny_llama, tmp_path / "m.gguf")
    found, wanted = open_base(str(tmp_path / "m.gguf")).model.state_dict(), weights_of(tiny_llama)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_gguf_file_of_the_same_name_and_size_with_other_weights_is_converted_again(tiny_llama: Path, tmp_path: Path):
    path = tmp_path / "m.gguf"
    norms = []
    for change in (0.0, 1.0):
        write(tiny_llama, path, change=change)
        norms.append(open_base(str(path)).model.model.norm.weight)
    assert torch.equal(norms[0] + 1.0, norms[1])


def test_what_is_no_gguf_file_is_refused(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(BaseModelError, match=r"transformers cannot read the GGUF file .*m.gguf: .*; check its files"):
        open_base(str(tmp_path / "m.gguf"))


def test_a_gguf_file_that_lacks_a_tensor_is_refused_by_its_name(tiny_llama: Path, tmp_path: Path):
    write(tiny_llama, tmp_path / "m.gguf", without="layers.1.mlp.up_proj")
    with pytest.raises(BaseModelError, match=r"m.gguf lacks 'model.layers.1.mlp.up_proj.weight' of the 21 tensors"):
        open_base(str(tmp_path / "m.gguf"))
