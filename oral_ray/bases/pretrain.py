"""Make the next version of a causal language model by continued pretraining on real text, all weights, AdamW.

Letters: B blocks in a batch, T tokens of a block.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import LoadedBase, load_base
from oral_ray.bases.sources import put_folder
from oral_ray.config import PretrainOrigin, derive_seed
from oral_ray.errors import BaseModelError
from oral_ray.modalities.causal import Causal
from oral_ray.objects import Objects

HELD_OUT_BLOCKS = 64
_MAX_DOCUMENT_CHARS = 20_000


def pretrain_base(
    parent: BaseRecord, objects: Objects, prefix: str, origin: PretrainOrigin, documents: Sequence[str],
    device: str = "cpu",
) -> float:  # fmt: skip
    """Train a copy of the parent on blocks of the documents and put it under the prefix; returns the last loss.

    The first `HELD_OUT_BLOCKS` blocks are never trained on (`perplexity`). Raises BaseModelError for too short a corpus,
    and where the parent is not what its record says.
    """
    base = load_base(parent, device=device, kind=Causal.name)
    model, tokenizer = base.model, base.tokenizer
    with tempfile.TemporaryDirectory(prefix="oral-pretrain-") as out:
        rng = torch.Generator().manual_seed(derive_seed(origin.seed, "pretrain"))
        needed = origin.steps * origin.batch_size
        blocks_NT = text_blocks(tokenizer, documents, origin.block_tokens, HELD_OUT_BLOCKS + 4 * needed)
        if len(blocks_NT) < HELD_OUT_BLOCKS + needed:
            raise BaseModelError(
                f"pretraining reads {HELD_OUT_BLOCKS + needed} blocks of {origin.block_tokens} tokens, the corpus "
                f"{origin.corpus!r} has {len(blocks_NT)}; lower steps, batch_size or block_tokens"
            )
        chosen = HELD_OUT_BLOCKS + torch.randperm(len(blocks_NT) - HELD_OUT_BLOCKS, generator=rng)[:needed]
        model.requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=origin.learning_rate, weight_decay=0.0, fused=True)
        loss = torch.zeros(())
        for step, rows in enumerate(chosen.split(origin.batch_size), 1):
            for group in optimizer.param_groups:
                group["lr"] = origin.learning_rate * _schedule(step, origin.steps)
            with torch.autocast(device, torch.bfloat16, enabled=origin.dtype == "bfloat16"):
                loss = _loss(model, blocks_NT[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.save_pretrained(out)  # type: ignore[operator]
        tokenizer.save_pretrained(out)
        put_folder(Path(out), objects, prefix)
    return float(loss.detach())


@torch.no_grad()
def perplexity(base: LoadedBase, documents: Sequence[str], block_tokens: int = 128) -> float:
    """exp of the mean negative log-likelihood of a token of the held-out blocks."""
    blocks_NT = text_blocks(base.tokenizer, documents, block_tokens, HELD_OUT_BLOCKS)
    losses = [float(_loss(base.model, blocks_BT)) * len(blocks_BT) for blocks_BT in blocks_NT.split(8)]
    return math.exp(sum(losses) / len(blocks_NT))


def text_blocks(tokenizer: Any, documents: Sequence[str], block_tokens: int, limit: int) -> Tensor:
    """The first `limit` blocks [N, T] of the documents' tokens, documents joined by the end-of-text token."""
    tokens: list[int] = []
    for document in documents:
        if len(tokens) >= limit * block_tokens:
            break
        tokens += [*tokenizer.encode(document[:_MAX_DOCUMENT_CHARS], add_special_tokens=False), tokenizer.eos_token_id]
    num = min(limit, len(tokens) // block_tokens)
    return torch.tensor(tokens[: num * block_tokens]).reshape(num, block_tokens)


def _schedule(step: int, num_steps: int) -> float:
    """A warm-up of five steps, then a straight line to a tenth: every version ends where its text is learnt best."""
    return min(step / 5, 1.0 - 0.9 * step / num_steps)


def _loss(model: nn.Module, blocks_BT: Tensor) -> Tensor:
    blocks_BT = blocks_BT.to(next(model.parameters()).device)
    logits_BTV = model(input_ids=blocks_BT, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), blocks_BT[:, 1:].flatten())


def weight_change(base: LoadedBase, other: LoadedBase) -> float:
    """||W - W'|| / ||W|| over all weights of two versions of one architecture."""
    before, after = base.model.state_dict(), other.model.state_dict()
    difference = sum(float((after[name] - before[name]).double().square().sum()) for name in before)
    return math.sqrt(difference / sum(float(value.double().square().sum()) for value in before.values()))
