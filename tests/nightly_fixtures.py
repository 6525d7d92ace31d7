"""What the tests of the nightly job share: a copy of the small store, its configuration, checkpoints that land, keys."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import load_file, save_file

from oral_ray.config import Config, load_config
from oral_ray.nightly import regenerate
from oral_ray.nightly.gate import Item
from oral_ray.nightly.regenerate import Survey
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.corpus import train_corpus
from oral_ray.pipeline.run import begin_run, open_run
from oral_ray.pipeline.shards import write_shards
from oral_ray.pipeline.train import train_in_task
from oral_ray.pipeline.walk import Trained, train_current

ROOT = Path(__file__).parents[1]


def copied(store: Path, target: Path) -> Path:
    """A store as it was before anything was generated; files are linked, as a store replaces them."""
    ignore = shutil.ignore_patterns("training", "releases", "published", "gate", "runs", "cache", "generated")
    shutil.copytree(store, target, copy_function=os.link, ignore=ignore)
    return target


def tiny_config(store: str | Path, source: Path, *overrides: str) -> Config:
    """tests/tiny.toml over a store, tasks run in this process."""
    about = [f"store.uri={store}", f"bases.versions.0.origin.source={source}", "cluster.address=none"]
    return load_config(ROOT / "tests" / "tiny.toml", [*about, *overrides])


def items_of(config: Config, recipe: str, found: Survey | None = None) -> list[Item]:
    """What workers would be given, by a survey of the store or another one, with this generator."""
    run = open_run(config)
    run = resolve_bases(run, regenerate._needed(run))
    manifest: Any = None  # nothing here reads the shards
    return regenerate._items(Trained(run, {}, manifest, recipe), found or regenerate.survey(run, recipe))


def trained_here(config: Config) -> Trained:
    """The walk in this process: the generator is trained as a task is, without Ray Train. Shards need `shards_here`."""
    run = resolve_bases(begin_run(config))
    corpus = train_corpus(run)
    manifest = write_shards(run, corpus)
    train_in_task(run.config, manifest.fingerprint)
    return train_current(run, corpus, manifest)


def land(store: Path, base_id: str, noise: float = 1e-3, like: str = "tiny-t2") -> Path:
    """A new version: another one's files, every weight shaken a little; its folder."""
    folder = store / "bases" / base_id
    shutil.copytree(store / "bases" / like, folder)
    rng = torch.Generator().manual_seed(sum(base_id.encode()))
    weights = {name: t + noise * torch.randn(t.shape, generator=rng) for name, t in weights_of(folder).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a landed version."""
    return load_file(folder / "model.safetensors")


def published(store: Path) -> set[str]:
    """`base/adapter_id` of every folder in the serving view."""
    return {path.relative_to(store / "published").as_posix() for path in (store / "published").glob("*/*")}


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A new private and public key as `NAME.pem` and `NAME.pub`."""
    key, public = ec.generate_private_key(ec.SECP256R1()), folder / f"{name}.pub"
    private = folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    return private, public
