"""Random damage to sound checkpoint and adapter folders, and what must come of it: equal logits, or a refusal.

    damage = damaged(sound_folder, target_folder, seed=7)      # the folder's files with one to three random changes
    outcome = judge_checkpoint(damage, target_folder)          # "taken", "refused"; AssertionError for anything else

What is right is worked out without oral_ray. As long as only weights were touched, the sound model's own parameters are
the truth, rounded to the dtype that the damage stored. Where a JSON file was touched, a default may have come in its
place, so the truth is what transformers (or peft) loads from the damaged folder, twice alike and with nothing missing.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oral_ray.errors import OralError

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "float32": torch.float32}
RAW = {
    "int8": torch.int8, "uint8": torch.uint8, "int32": torch.int32, "bool": torch.bool,
    "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2,
}  # fmt: skip
TOLERANCE = 2e-5
TEXT = "Is it an animal or a person?"
STRAYS = (
    "pytorch_model.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors",
    "model-00001-of-00002.safetensors", "diffusion_pytorch_model.safetensors", "extra.safetensors",
)  # fmt: skip


@dataclass(slots=True)
class Damage:
    """What was done to a folder: words for a report, dtypes by tensor name, files that were put there, whether a JSON
    file was touched."""

    words: list[str] = field(default_factory=list)
    rounded: dict[str, torch.dtype] = field(default_factory=dict)
    strays: set[str] = field(default_factory=set)
    touched_json: bool = False


def damaged(sound: Path, target: Path, seed: int) -> Damage:
    """Copy a sound folder and change one to three things in it; the same seed makes the same damage."""
    shutil.copytree(sound, target, symlinks=True)
    rng, damage = random.Random(f"{sound.name}/{seed}"), Damage()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(CHANGES)(rng, target, damage)
    return damage


def _pick(rng: random.Random, folder: Path, pattern: str = "*") -> Path | None:
    """A file of a folder; None where no such file is left of it."""
    return rng.choice(sorted(path for path in folder.glob(pattern) if path.is_file()) or [None])


def _change_tensors(change: Callable[[random.Random, dict[str, Tensor], Damage], None]) -> Callable[..., None]:
    """A change of a folder out of one of the tensors of a weights file."""

    def changed(rng: random.Random, folder: Path, damage: Damage) -> None:
        path = _pick(rng, folder, "*.safetensors")
        try:
            tensors = load_file(path) if path else {}
        except Exception:  # an earlier change has truncated it
            return
        if path and tensors:
            of_file = Damage(damage.words)
            change(rng, tensors, of_file)
            damage.rounded |= {} if path.name in damage.strays else of_file.rounded
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})

    return changed


@_change_tensors
def _drop_tensor(rng: random.Random, tensors: dict[str, Tensor], damage: Damage) -> None:
    name = rng.choice(sorted(tensors))
    del tensors[name]
    damage.words.append(f"drop tensor {name}")


@_change_tensors
def _rename_tensors(rng: random.Random, tensors: dict[str, Tensor], damage: Damage) -> None:
    prefix = rng.choice(("model.", "module.", "base_model.model.", "language_model.", "_orig_mod.", "bert.", "x."))
    renames: dict[str, Callable[[str], str]] = {
        "a letter more": lambda name: name + "x",
        "upper case": str.upper,
        "capital first": str.title,
        "another layer": lambda name: name.replace(".0.", ".7."),
        "bias for weight": lambda name: name.replace("weight", "bias"),
        f"prefix {prefix}": lambda name: prefix + name,
        "first part lost": lambda name: name.partition(".")[2] or name,
        "dots for underscores": lambda name: name.replace("_", "."),
        ".default inserted": lambda name: name.replace(".weight", ".default.weight"),
    }
    how = rng.choice(sorted(renames))
    chosen = sorted(tensors) if rng.random() < 0.3 else [rng.choice(sorted(tensors))]
    for name in chosen:
        tensors[renames[how](name)] = tensors.pop(name)
    damage.words.append(f"rename {'all' if len(chosen) > 1 else chosen[0]}: {how}")


@_change_tensors
def _retype_tensors(rng: random.Random, tensors: dict[str, Tensor], damage: Damage) -> None:
    dtypes = FLOATS | RAW
    name = rng.choice(sorted(dtypes))
    chosen = sorted(tensors) if rng.random() < 0.4 else [rng.choice(sorted(tensors))]
    for key in chosen:
        tensors[key] = tensors[key].float().to(dtypes[name])
        damage.rounded[key] = dtypes[name]
    damage.words.append(f"retype {'all' if len(chosen) > 1 else chosen[0]} to {name}")


@_change_tensors
def _reshape_tensor(rng: random.Random, tensors: dict[str, Tensor], damage: Damage) -> None:
    name = rng.choice(sorted(tensors))
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "transposed": lambda t: t.T if t.dim() == 2 and t.shape[0] != t.shape[1] else t[:-1],
        "one row less": lambda t: t[:-1],
        "one row more": lambda t: torch.cat([t, t[:1]]),
        "flat": lambda t: t.flatten() if t.dim() > 1 else t[None],
        "a dimension more": lambda t: t[None],
        "empty": lambda t: t[:0],
    }
    how = rng.choice(sorted(shapes))
    tensors[name] = shapes[how](tensors[name]).contiguous()
    damage.words.append(f"reshape {name}: {how}")


@_change_tensors
def _duplicate_tensor(rng: random.Random, tensors: dict[str, Tensor], damage: Damage) -> None:
    name = rng.choice(sorted(tensors))
    copies = (f"model.{name}", f"{name}_copy", name.replace(".0.", ".5."), name.upper(), name.partition(".")[2] or "x")
    copy = rng.choice([copy for copy in copies if copy not in tensors])
    tensors[copy] = _other(tensors[name])
    damage.words.append(f"duplicate {name} as {copy}, other values")


def _other(tensor: Tensor) -> Tensor:
    """A tensor of the same dtype with other values; raw integers keep theirs."""
    return (tensor.float() + 1).to(tensor.dtype) if tensor.dtype.is_floating_point else tensor.clone()


def _cut_file(rng: random.Random, folder: Path, damage: Damage) -> None:
    if (path := _pick(rng, folder)) is None:
        return
    data = path.read_bytes()
    end = rng.choice((0, 1, 7, len(data) // 2, max(0, len(data) - 1), len(data) - 100 if len(data) > 100 else 0))
    path.write_bytes(data[:end])
    damage.touched_json |= path.suffix != ".safetensors"
    damage.words.append(f"cut {path.name} at byte {end} of {len(data)}")


def _lengthen_file(rng: random.Random, folder: Path, damage: Damage) -> None:
    if (path := _pick(rng, folder)) is None:
        return
    path.write_bytes(path.read_bytes() + rng.choice((b"\0", b"}", b"\n", b"x" * 64)))
    damage.touched_json |= path.suffix != ".safetensors"
    damage.words.append(f"bytes behind the end of {path.name}")


def _recase_file(rng: random.Random, folder: Path, damage: Damage) -> None:
    if (path := _pick(rng, folder)) is None:
        return
    path.rename(path.with_name(path.name.upper()))
    damage.touched_json |= path.suffix != ".safetensors"
    damage.words.append(f"{path.name} in capitals")


def _drop_file(rng: random.Random, folder: Path, damage: Damage) -> None:
    if (path := _pick(rng, folder)) is None:
        return
    path.unlink()
    damage.touched_json |= path.suffix != ".safetensors"
    damage.words.append(f"drop {path.name}")


def _duplicate_file(rng: random.Random, folder: Path, damage: Damage) -> None:
    path = _pick(rng, folder, "*.safetensors")
    stray = rng.choice(STRAYS)
    if path is None or (folder / stray).exists():
        return
    try:
        tensors = load_file(path)
    except Exception:
        return
    save_file({name: _other(tensor) for name, tensor in tensors.items()}, folder / stray, metadata={"format": "pt"})
    damage.strays.add(stray)
    damage.words.append(f"other weights beside it as {stray}")


def _change_json(rng: random.Random, folder: Path, damage: Damage) -> None:
    if (path := _pick(rng, folder, "*.json")) is None:
        return
    try:
        value = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        return
    if not isinstance(value, dict) or not value:
        return
    is_index = path.name.endswith("index.json") and isinstance(value.get("weight_map"), dict)
    mapping = value["weight_map"] if is_index else value
    if not mapping:
        return
    key = rng.choice(sorted(mapping))
    how = rng.choice(("drop", "rename", "recase", "retype", "retype", "recase value"))
    if how == "drop":
        del mapping[key]
    elif how == "rename":
        mapping[key + "_x"] = mapping.pop(key)
    elif how == "recase":
        mapping[key.upper()] = mapping.pop(key)
    elif how == "recase value" and isinstance(mapping[key], str):
        mapping[key] = mapping[key].upper()
    else:
        mapping[key] = rng.choice((None, True, False, 0, -1, 1, 3, 2.5, 32.0, "8", "x", [], ["q_proj"], {}, 10**9))
    path.write_text(json.dumps(value))
    damage.touched_json = True
    damage.words.append(f"{path.name}: {how} {key!r}")


def _repeat_json_key(rng: random.Random, folder: Path, damage: Damage) -> None:
    if (path := _pick(rng, folder, "*.json")) is None:
        return
    try:
        value = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        return
    if not isinstance(value, dict) or not value:
        return
    key, again = rng.choice(sorted(value)), rng.choice((None, 1, 16, "x", False))
    path.write_text(f"{json.dumps(value)[:-1]}, {json.dumps(key)}: {json.dumps(again)}}}")
    damage.touched_json = True
    damage.words.append(f"{path.name}: {key!r} stands twice, the second time {again!r}")


CHANGES: tuple[Callable[[random.Random, Path, Damage], None], ...] = (
    _drop_tensor, _rename_tensors, _rename_tensors, _retype_tensors, _reshape_tensor, _duplicate_tensor, _cut_file,
    _lengthen_file, _recase_file, _drop_file, _duplicate_file, _change_json, _change_json, _change_json, _repeat_json_key,
)  # fmt: skip


def rounded_state(model: nn.Module, damage: Damage) -> dict[str, Tensor]:
    """The sound model's parameters as the damaged file stores them; raw integers stay what they are as numbers.

    A stored name may lack or carry the prefix of the head's class, as published checkpoints do; tied weights are one.
    """
    state = dict(model.state_dict())
    for stored, dtype in damage.rounded.items():
        meant = {
            tensor.data_ptr()
            for name, tensor in state.items()
            if name == stored or name.endswith(f".{stored}") or stored.endswith(f".{name}")
        }
        state = {name: t.to(dtype).float() if t.data_ptr() in meant else t for name, t in state.items()}
    return {name: tensor.clone() for name, tensor in state.items()}


def outcome_of(take: Callable[[], Any], truth: Callable[[], Any], words: list[str]) -> tuple[str, str]:
    """("taken", "") where what is taken equals the truth, ("refused", reason) where it is refused.

    AssertionError where neither is the case: other values, or an error that is no OralError.
    """
    try:
        found = take()
    except OralError as error:
        reason = str(error)
        assert reason.strip(), f"{words}: refused without a reason"
        assert "\n" not in reason.strip(), f"{words}: a reason of several lines: {reason!r}"
        return "refused", reason
    except Exception as error:
        raise AssertionError(f"{words}: {type(error).__name__}: {error}") from error
    wanted = truth()
    for ours, theirs in zip(found, wanted, strict=True):
        same = ours.shape == theirs.shape and bool(torch.isfinite(ours).all())
        assert same, f"{words}: taken with shape {tuple(ours.shape)}, the truth has {tuple(theirs.shape)}"
        difference = float((ours - theirs).abs().max())
        assert difference <= TOLERANCE, f"{words}: taken, logits differ by {difference:.3g}"
    return "taken", ""
