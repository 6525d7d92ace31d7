"""Base models of the Hugging Face hub: `hf:ORG/NAME` and `hf:ORG/NAME@REVISION`, kept in the hub's own cache.

The cache, the address (`HF_ENDPOINT`), the token (`hf auth login`, `HF_TOKEN`) and whether the network may be used at all
(`HF_HUB_OFFLINE`) are those of huggingface_hub. What the cache holds is used without the network.

    folder = hub_folder("meta-llama/Llama-3.1-8B", (".safetensors", ".json"))
    folder = hub_folder("meta-llama/Llama-3.1-8B@main", ())       # config.json alone
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from oral_ray.bases.contents import PIPELINE_INDEX, why_no_checkpoint
from oral_ray.errors import BaseModelError


def hub_folder(repository: str, suffixes: Sequence[str]) -> Path:
    """The cached folder of a repository with its files of these suffixes that lie at its top; without any, config.json.

    Raises BaseModelError when they are neither in the cache nor to be had.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    name, _, revision = repository.removeprefix("//").partition("@")
    with _hub_errors(name, revision):
        if not suffixes:
            return Path(hf_hub_download(name, "config.json", revision=revision or None)).parent
        wanted = [f"*{suffix}" for suffix in suffixes]
        folder = Path(
            snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=["*/*"])
        )
        _check(name, folder)
    if (folder / PIPELINE_INDEX).exists():
        raise BaseModelError(
            f"hub repository {name!r} is a diffusers pipeline, whose folders are not fetched here; run hf download {name} "
            "--local-dir FOLDER and give that folder"
        )
    return folder


def _check(name: str, folder: Path) -> None:
    """BaseModelError where the repository is no checkpoint; what it holds beside what was fetched says why."""
    if not (reason := why_no_checkpoint([path.name for path in folder.iterdir()])):
        return
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(name, revision=folder.name)
    except ConnectionError:  # offline: the hub's client takes a folder of its cache as it finds it
        raise BaseModelError(
            f"hub repository {name!r} is in the hub's cache in part only: {folder} {reason}; fetch it once with the "
            f"network: hf download {name}"
        ) from None
    raise BaseModelError(f"hub repository {name!r} {why_no_checkpoint(names) or reason}")


@contextlib.contextmanager
def _hub_errors(name: str, revision: str) -> Iterator[None]:
    """BaseModelError with one sentence for whatever the hub's client raises."""
    from huggingface_hub import errors

    try:
        yield
    except (OSError, ValueError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        reason = _reason(error, name, revision)
        raise BaseModelError(f"hub repository {name!r} could not be fetched: {reason}") from None


def _reason(error: Exception, name: str, revision: str) -> str:
    from huggingface_hub import constants, errors

    said = " ".join(str(error).split())[:300]
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated; accept its terms at {constants.ENDPOINT}/{name} and log in (hf auth login, or HF_TOKEN)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{constants.ENDPOINT} has none of that name, or it is private; check the name, or log in (hf auth login)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; check the branch, tag or commit"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "it has no config.json; is it a model that transformers loads?"
    if isinstance(error, errors.HFValidationError):
        return "that is no repository; say hf:ORG/NAME or hf:ORG/NAME@REVISION"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            what = f"{name}@{revision}" if revision else name
            return f"HF_HUB_OFFLINE is set and {what} is not whole in {constants.HF_HUB_CACHE}; unset it, or copy the cache"
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        return f"{constants.ENDPOINT} cannot be reached ({cause}); check the network and HF_ENDPOINT"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} answers {said}; try again later, or log in (hf auth login)"
    return f"{said}; check the network, and the space and permissions of {constants.HF_HUB_CACHE}"
