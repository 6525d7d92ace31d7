"""Why files are no checkpoint, told from their names: what is there instead, and what would make one of it.

reason = why_no_checkpoint(["config.json", "pytorch_model.bin"])
f"{folder} {reason}"        # "... has pickle weights only (pytorch_model.bin), and pickle files are never read; ..."
"""

import re
from collections.abc import Collection, Sequence

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PIPELINE_INDEX = "model_index.json"
"""The file that names the components of a diffusers pipeline, each a folder beside it."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""How the file begins that git leaves where a large one belongs."""

_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp")
_PICKLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FOREIGN = (".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".mlmodel")
_SAVE_AGAIN = "load it with transformers where you trust it, and save_pretrained it: that writes safetensors"


def why_no_checkpoint(names: Collection[str]) -> str:
    """What is wrong with files of these names, to be said after their place; empty where they may be a checkpoint."""
    top = sorted(name for name in names if "/" not in name)
    if not names:
        return "is empty; put the files of a checkpoint directly below it"
    if PIPELINE_INDEX in top:
        return ""
    if "config.json" not in top:
        return _without_config(sorted(names), top)
    if SINGLE not in top and INDEX not in top:
        return _without_weights(sorted(names), top)
    return ""


def _without_config(names: Sequence[str], top: Sequence[str]) -> str:
    snapshots = sorted({"/".join(name.split("/")[:2]) for name in names if re.match("snapshots/[^/]+/", name)})
    if snapshots and any(name.startswith(("blobs/", "refs/")) for name in names):
        return (
            f"is a folder of the hub's cache, the files are links in {snapshots[0]}/; copy that one folder with cp -rL, "
            "or import it from hf:ORG/NAME"
        )
    if found := _unfinished(names):
        return found
    if found := [name for name in top if name.lower() == "config.json"]:
        return f"has {found[0]!r} and no config.json; rename it"
    if "adapter_config.json" in top:
        return (
            "is an adapter, no base (adapter_config.json and no config.json); merge it into its base "
            "(merge_and_unload, save_pretrained) to make one"
        )
    if nested := sorted((name for name in names if name.endswith("/config.json")), key=lambda name: name.count("/")):
        return _nested([name.removesuffix("config.json") for name in nested])
    if found := _ending(top, (".gguf",)):
        return _gguf(found)
    if found := _ending(top, (".safetensors",)):
        return f"has weights ({_shown(found)}) and no config.json; add the model's"
    if found := _ending(top, _PICKLE + _FOREIGN):
        return f"has weights ({_shown(found)}) that are not read and no config.json; {_SAVE_AGAIN}"
    return (
        f"has no config.json and no weights (it holds {_shown(names)}); put the files of a checkpoint directly below it"
    )


def _without_weights(names: Sequence[str], top: Sequence[str]) -> str:
    if found := _unfinished(names):
        return found
    if shards := [match for match in map(_SHARD.fullmatch, top) if match]:
        num_all = int(shards[0][1])
        some = f"{len(shards)} shards" if len(shards) == num_all else f"{len(shards)} of {num_all} shards"
        return f"has {some} and no {INDEX}; add the index" + ("" if len(shards) == num_all else " and the other shards")
    if found := [name for name in top if name.lower() in (SINGLE, INDEX)]:
        return f"has {found[0]!r}, which is read as {found[0].lower()} only; rename it"
    if found := [name for name in _ending(top, (".safetensors",)) if name.startswith("diffusion_pytorch_model")]:
        return (
            f"is a part of a diffusers pipeline ({found[0]}); give the whole pipeline, the folder with {PIPELINE_INDEX}"
        )
    if found := [name for name in _ending(top, (".safetensors",)) if not name.startswith("adapter_model")]:
        remedy = f"rename it to {SINGLE}" if len(found) == 1 else f"add the {INDEX} that belongs to them"
        return f"has weights under another name ({_shown(found)}); {remedy}"
    if found := [name for name in top if name.startswith("adapter_model.")]:
        return f"is an adapter ({found[0]}) with a config.json and no weights of a base; add the base's weights"
    if found := _ending(top, _PICKLE):
        return f"has pickle weights only ({_shown(found)}), and pickle files are never read; {_SAVE_AGAIN}"
    if found := _ending(top, (".gguf",)):
        return _gguf(found)
    if found := _ending(top, _FOREIGN):
        return f"has weights only as {_shown(found)}; {_SAVE_AGAIN}"
    if nested := [name for name in names if "/" in name and name.endswith(".safetensors")]:
        return f"has its weights in {nested[0].rpartition('/')[0]}/; put them beside config.json"
    return f"has config.json and no safetensors weights; add {SINGLE}, or shards and {INDEX}"


def _ending(names: Sequence[str], endings: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(endings)]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _unfinished(names: Sequence[str]) -> str:
    """A download that broke off: beside its target, or where the hub's own client keeps it (.cache/huggingface)."""
    for name in names:
        stem, dot, _ = name.rpartition(".")
        of_a_model = stem.endswith((".safetensors", ".json", ".bin")) or name.startswith(".cache/huggingface/")
        if name.endswith(_UNFINISHED) and dot and of_a_model:
            return f"has a file that is not fully downloaded ({name}); finish the download, or start it again"
    return ""


def _nested(folders: Sequence[str]) -> str:
    if len(folders) == 1:
        return f"has its files in {folders[0]}; put them directly below the base's own folder"
    return f"has {len(folders)} checkpoints below it ({_shown(folders)}); give each a folder of its own, with an id as name"


def _gguf(names: Sequence[str]) -> str:
    return (
        f"has a GGUF file only ({names[0]}), which is converted by an import and not where it lies; add it as a "
        f'[[bases.versions]] with origin = {{ kind = "import", source = ".../{names[0]}" }}'
    )
