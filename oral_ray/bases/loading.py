"""Bring a base model into memory, or into the store. Pickle weights and remote code are never loaded.

transformers sees a folder of links to the files that were fingerprinted, and no others, so nothing else can be preferred
or attached. Its own report of the load must say that every tensor was there and none was left over.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oral_ray.bases.assembly import load_pipeline
from oral_ray.bases.catalog import BaseRecord, describe_base
from oral_ray.bases.checkpoint import Checkpoint, behaviour_files, check_tokenizer, read_checkpoint
from oral_ray.bases.contents import PIPELINE_INDEX
from oral_ray.bases.expected import ExpectedModel
from oral_ray.bases.foreign import transformers_reads
from oral_ray.bases.gguf import converted
from oral_ray.bases.pipeline import is_pipeline
from oral_ray.bases.sources import SourceFolder, local_path, put_folder
from oral_ray.bases.storage import check_plain, without_quantization
from oral_ray.bases.view import keep_weights, show
from oral_ray.config import Dtype
from oral_ray.errors import BaseModelError
from oral_ray.modalities import Modality, TaskReader, kind_named, modality_of
from oral_ray.objects import FileObjects, Objects


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory, in evaluation mode, on the CPU and in float32 unless asked for otherwise.

    Of a pipeline `model` is the denoiser, and in the tokenizer's place is everything beside it.
    """

    record: BaseRecord
    model: nn.Module
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def writes_text(self) -> bool:
        """Whether the next token of a text has a probability here, so that a text has a perplexity."""
        return kind_named(self.record.spec.kind).writes_text

    def outputs(self, model: nn.Module) -> Tensor:
        """What a model, this base with an adapter, answers to fixed random input."""
        return modality_of(self.record.spec.kind).outputs(model, self.tokenizer)

    def reader(self, labels: Sequence[str]) -> TaskReader:
        """How this base reads a task with these labels (none: free text); TaskError where it cannot."""
        return modality_of(self.record.spec.kind).reader(self.model, self.tokenizer, labels)


def open_base(source: str, dtype: Dtype = "float32") -> LoadedBase:
    """Load a base model from any source; its id is the source."""
    with model_folder(source) as folder, _unchanged(folder):
        record = describe_base(SourceFolder(folder), "", source)
        model, tokenizer = load_folder(folder, record.spec.kind)
    return LoadedBase(record, _moved(model, "cpu", dtype), tokenizer)


def load_base(record: BaseRecord, dtype: Dtype = "float32", device: str = "cpu", kind: str = "") -> LoadedBase:
    """Load the checkpoint of a record; BaseModelError when its content is not what the record says.

    `kind` names the kind of base whose class loads it, where that is not its own.
    """
    with model_folder(record.uri) as folder, _unchanged(folder):
        lies_there = describe_base(FileObjects(folder), "", record.id)
        if lies_there.fingerprint != record.fingerprint:
            raise BaseModelError(
                f"base {record.id!r} at {record.uri} has fingerprint {lies_there.fingerprint}, expected "
                f"{record.fingerprint}; it was replaced, run the catalog again"
            )
        model, tokenizer = load_folder(folder, kind or record.spec.kind)
    return LoadedBase(record, _moved(model, device, dtype), tokenizer)


def _moved(model: nn.Module, device: str, dtype: Dtype) -> nn.Module:
    """The model, which is in float32, on a device in a dtype."""
    return model.to(device) if dtype == "float32" else model.to(device, getattr(torch, dtype))


def load_folder(folder: Path, kind: str) -> tuple[nn.Module, Any]:
    """Model and tokenizer of a transformers folder with safetensors weights, float32, evaluation mode.

    Of a diffusers pipeline they are the denoiser and the parts beside it. Raises BaseModelError where the folder holds
    anything but one whole checkpoint in plain floats with its tokenizer, or where transformers or diffusers refuses the
    files.
    """
    modality = modality_of(kind)
    found = is_pipeline(SourceFolder(folder))
    if found != modality.of_pipelines:
        what = "a diffusers pipeline" if found else "no diffusers pipeline"
        raise BaseModelError(f"base model at {folder} is {what} and cannot be loaded as one of kind {kind!r}")
    if found:
        model, parts = load_pipeline(folder)
        return _checked(model, parts, modality, folder)
    checkpoint = read_checkpoint(SourceFolder(folder))
    check_plain(checkpoint.config, checkpoint.tensors, str(folder))
    check_tokenizer(checkpoint.files, str(folder))
    with _only(folder, checkpoint) as view:
        model = _load_model(view, checkpoint, modality, str(folder))
        tokenizer = _load_tokenizer(view, model, str(folder))
    return _checked(model, tokenizer, modality, folder)


def _checked(model: nn.Module, tokenizer: Any, modality: Modality, folder: Path) -> tuple[nn.Module, Any]:
    model = model.eval().requires_grad_(False)
    with transformers_reads(f"a text with the base model at {folder}"):
        try:
            modality.check(model, tokenizer)
        except BaseModelError as error:
            raise BaseModelError(f"base model at {folder}: {error}") from None
    return model, tokenizer


@contextlib.contextmanager
def model_folder(source: str) -> Iterator[Path]:
    """A local folder that `load_folder` reads, from any source; GGUF files are converted once and cached."""
    with local_path(source) as path:
        folder = converted(path) if path.suffix == ".gguf" else path
        if not folder.is_dir():
            raise BaseModelError(f"base model {source!r} is neither a folder nor a .gguf file")
        yield folder


def import_base(source: str, objects: Objects, prefix: str) -> None:
    """Copy the files of a source under a prefix of the store, config.json last; what would not load is refused here."""
    with model_folder(source) as folder, _unchanged(folder):
        describe_base(SourceFolder(folder), "", source)
        put_folder(folder, objects, prefix)


def _load_model(view: Path, checkpoint: Checkpoint, modality: Modality, where: str) -> Any:
    """The model in a folder, with exactly the weights that lie there, in memory of its own."""
    import transformers
    from transformers import AutoConfig

    auto = getattr(transformers, modality.auto_class)
    _check_sizes(view, checkpoint, where)
    with transformers_reads(f"the base model at {where}"):
        config = AutoConfig.from_pretrained(str(view), local_files_only=True, trust_remote_code=False)
        model, report = auto.from_pretrained(
            str(view), config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
            **modality.build_options(config, checkpoint.tensors),
        )  # fmt: skip
    ExpectedModel(model, modality).check_report(report, checkpoint.tensors, where)
    _check_sizes(view, checkpoint, where)
    keep_weights(model, where)
    return model


def _check_sizes(view: Path, checkpoint: Checkpoint, where: str) -> None:
    """BaseModelError where a weight file is not as long as its header said.

    Whoever reads a mapped file beyond its end is killed by the system (SIGBUS), which nothing can catch: so this is asked
    right before the file is mapped, and again before what is mapped is copied. A file that is cut in the moments between
    is not seen.
    """
    ends: dict[str, int] = {}
    for entry in checkpoint.tensors.values():
        ends[entry.key] = max(ends.get(entry.key, 0), entry.end)
    for file, end in sorted(ends.items()):
        if (num_bytes := (view / file).stat().st_size) != end:
            raise BaseModelError(
                f"{where}: {file!r} has {num_bytes} bytes, and had {end} a moment ago; wait until its upload has ended, "
                "then run the catalog again"
            )


def _load_tokenizer(view: Path, model: Any, where: str) -> Any:
    """The tokenizer in a folder; BaseModelError where its tokens are not those of the model, or it cannot pad."""
    from transformers import AutoTokenizer

    with transformers_reads(f"the tokenizer at {where}"):
        tokenizer = AutoTokenizer.from_pretrained(str(view), local_files_only=True, trust_remote_code=False)
        last = max(tokenizer.get_vocab().values(), default=-1)
        tokenizer("a text")  # settings that only a use finds wrong are found here
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 <= last < rows:
        raise BaseModelError(
            f"{where}: the tokenizer has token ids up to {last}, the model {rows} embeddings; upload the tokenizer that "
            "belongs to the weights, or resize the embeddings"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BaseModelError(
                f"{where}: the tokenizer names neither a pad_token nor an eos_token; name one in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _only(folder: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder with links to the files of a checkpoint, and nothing else of what lies beside them."""
    with tempfile.TemporaryDirectory(prefix="oral-load-") as name:
        show(checkpoint.files, folder, Path(name), without_quantization(checkpoint.config))
        yield Path(name)


@contextlib.contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """BaseModelError where a file of the folder was replaced or written to meanwhile, or one has come or gone."""
    before = _states(folder)
    try:
        yield
    except BaseModelError:
        _check_states(folder, before)  # then that is why
        raise
    _check_states(folder, before)


def _check_states(folder: Path, before: Mapping[str, tuple[int, ...]]) -> None:
    after = _states(folder)
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        raise BaseModelError(
            f"base model at {folder} changed while it was read ({changed[0]!r}); wait until its upload has ended, then run "
            "the catalog again"
        )


def _that_count(folder: Path) -> set[str]:
    """The files of a checkpoint, or of all components of a pipeline, that are read."""
    found: set[str] = set()
    is_of_parts = (folder / PIPELINE_INDEX).exists()
    for place in (folder, *(path for path in folder.iterdir() if is_of_parts and path.is_dir())):
        names = [path.name for path in place.iterdir()]
        chosen = {*behaviour_files(names), *(name for name in names if name.endswith((".json", ".safetensors")))}
        found |= {str((place / name).relative_to(folder)) for name in chosen}
    return found


def _states(folder: Path) -> dict[str, tuple[int, ...]]:
    """What tells whether a file that counts was touched: its place on the disk, its size, the times of its changes."""
    states = {}
    for name in _that_count(folder):
        with contextlib.suppress(OSError):  # a link that leads nowhere, a file that has just gone
            state = (folder / name).stat()
            states[name] = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return states
