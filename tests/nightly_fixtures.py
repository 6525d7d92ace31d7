"""What the tests of the nightly job share: a copy of the small store, its configuration, checkpoints that land, keys."""

import os
import shutil
from pathlib import Path

import torch
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import load_file, save_file

from oral_ray.config import Config, load_config

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
