"""Make the next version of a sentence encoder by continued contrastive training on real text (lemma <-> gloss).

Symmetric InfoNCE over in-batch negatives (van den Oord et al., arXiv 1807.03748), all weights but the
word embeddings, AdamW.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.loading import load_base
from oral_ray.bases.sources import put_folder
from oral_ray.config import EvolveOrigin, derive_seed
from oral_ray.errors import BaseModelError
from oral_ray.modalities.encoder import Encoder, embed
from oral_ray.modalities.text import encode
from oral_ray.objects import Objects

MAX_TOKENS = 24


def evolve_base(
    parent: BaseRecord, objects: Objects, prefix: str, origin: EvolveOrigin, pairs: Sequence[tuple[str, str]],
    device: str = "cpu",
) -> float:  # fmt: skip
    """Train a copy of the parent on (lemma, gloss) pairs and put it under the prefix; returns the last loss.

    Raises BaseModelError when there are fewer pairs than one run reads, or the parent is not what its record says.
    """
    needed = origin.steps * origin.batch_size
    if needed > len(pairs):
        raise BaseModelError(f"evolving reads {needed} pairs (steps x batch_size), there are {len(pairs)}; lower one")
    rng = torch.Generator().manual_seed(derive_seed(origin.seed, "evolve"))
    order = torch.randperm(len(pairs), generator=rng)[:needed].reshape(origin.steps, origin.batch_size).tolist()
    base = load_base(parent, device=device, kind=Encoder.name)
    model, tokenizer = base.model, base.tokenizer
    with tempfile.TemporaryDirectory(prefix="oral-evolve-") as out:
        model.requires_grad_(True)
        model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=origin.learning_rate)
        loss = torch.zeros(())
        for chosen in order:
            left = embed(model, encode(tokenizer, [pairs[i][0] for i in chosen], max_tokens=MAX_TOKENS))
            right = embed(model, encode(tokenizer, [pairs[i][1] for i in chosen], max_tokens=MAX_TOKENS))
            logits = left @ right.T / origin.temperature
            target = torch.arange(len(chosen), device=device)
            loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(out)  # type: ignore[operator]
        tokenizer.save_pretrained(out)
        put_folder(Path(out), objects, prefix)
    return float(loss.detach())
