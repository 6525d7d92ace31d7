"""Signatures of published adapters: the package `model-signing` with a pair of elliptic-curve keys, without any service.

`model.sig` lies beside the files that it signs (weights, provenance, card, configuration), is in no digest, and is checked
against exactly these files: a changed byte, a missing or a further file and another key are refused.

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub

    sign_folder(folder, Path("key.pem"))
    verify_folder(folder, Path("key.pub"), "my adapter")
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from oral_ray.errors import ArtifactError, ConfigError

SIGNATURE = "model.sig"


def sign_folder(folder: Path, private_key: Path) -> None:
    """Write the signature of all other files of a folder."""
    with _installed():
        from model_signing import hashing, signing
    with _key_errors(private_key):
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    files = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    config.set_hashing_config(files).sign(folder, folder / SIGNATURE)


def verify_folder(folder: Path, public_key: Path, name: str) -> None:
    """ArtifactError, with the name of what lies there, unless the signature is of exactly its files and by this key."""
    with _installed():
        from cryptography.exceptions import InvalidSignature
        from model_signing import hashing, verifying
    with _key_errors(public_key):
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    files = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    try:
        config.set_hashing_config(files).verify(folder, folder / SIGNATURE)
    except (ValueError, KeyError, TypeError, OSError, InvalidSignature) as error:
        reason = " ".join(str(error).partition(": Expected")[0].split())[:200] or type(error).__name__
        raise ArtifactError(
            f"{name}: {SIGNATURE} is no signature of these files by {public_key} ({reason}); do not use them"
        ) from None


def signer_name(key: Path) -> str:
    """16 hex digits that name a key pair, from its private or public half: of the SHA-256 of the public one."""
    with _installed():
        from cryptography.hazmat.primitives import serialization as pem
    with _key_errors(key):
        data = key.read_bytes()
        public = (
            pem.load_pem_private_key(data, None).public_key() if b"PRIVATE" in data else pem.load_pem_public_key(data)
        )
    der = public.public_bytes(pem.Encoding.DER, pem.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"signatures need the package {error.name}; run pip install 'oral-ray[sign]'") from None


@contextlib.contextmanager
def _key_errors(key: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ConfigError(f"{key} is no key in PEM form on a NIST curve without a password: {reason}") from None
