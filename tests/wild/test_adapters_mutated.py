"""Sound adapters spoilt at random are taken with the outputs that peft gives, or refused; nothing else ever happens.

`ORAL_TEST_MUTATIONS` sets how many (default 80).
"""

import json
import math
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factory_fixtures import base_of, copy_of_weights
from safetensors.torch import load_file, save_file
from wild.adapters import ADAPTERS, CONFIG, WEIGHTS

from oral_ray.adapters.artifact import read_folder
from oral_ray.adapters.intake import take_in
from oral_ray.adapters.lora import difference_from_peft
from oral_ray.errors import OralError

SOUND = (
    "plain", "rslora", "rank_pattern", "alpha_pattern", "regex", "full names", "layers_to_transform", "exclude_modules",
    "names with .default",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2, 8.5, "", "x", "8", [], ["q_proj"], ["q_proj", 5], {}, {"a": 1}, {"q_proj": "x"},
    {"q_proj": None}, [[0, 1]], "q_proj", 10**30, 1e308, "\ud800", "(", [None], "all-linear", ".*", {"(": 2}, {".*": 2},
    [0], [1], [-1],
)  # fmt: skip
RENAMED = (
    ("lora_A", "lora_B"), (".0.", ".1."), ("q_proj", "v_proj"), ("q_proj", "k_proj"), (".weight", ""), ("model.", ""),
    ("base_model.", ""), ("lora", "Lora"), (".weight", ".default.weight"), ("layers", "layer"),
)  # fmt: skip
DTYPES = (torch.int8, torch.float16, torch.bool, torch.float64, torch.float8_e4m3fn)
RESHAPED: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x.T, lambda x: x[:1], lambda x: x[:, :1], lambda x: x.flatten(), lambda x: x[None], lambda x: x.repeat(2, 1),
)  # fmt: skip


def spoil_config(rng: random.Random, folder: Path) -> str:
    config = json.loads((folder / CONFIG).read_text())
    key, how = rng.choice(sorted(config)), rng.choice(["drop", "retype", "recase", "rename", "swap"])
    value = config.pop(key)
    if how == "retype":
        config[key] = rng.choice(VALUES)
    elif how == "recase":
        config[rng.choice([key.upper(), key.title()])] = value
    elif how == "rename":
        config[f"{key}_"] = value
    elif how == "swap":
        other = rng.choice(sorted(config))
        config[key], config[other] = config[other], value
    (folder / CONFIG).write_text(json.dumps(config))
    return f"{how} {key}"


def spoil_tensors(rng: random.Random, folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    key = rng.choice(sorted(tensors))
    how = rng.choice(["drop", "rename", "retype", "duplicate", "reshape", "recase", "swap", "drop pair"])
    if how == "duplicate":
        tensors[key.replace(".weight", rng.choice([".default.weight", ".weightx"]))] = tensors[key].clone()
    elif how == "swap":
        other = rng.choice(sorted(tensors))
        tensors[key], tensors[other] = tensors[other], tensors[key]
    elif how == "drop pair":
        tensors = {name: tensor for name, tensor in tensors.items() if key.partition(".lora_")[0] not in name}
    else:
        tensor = tensors.pop(key)
        if how == "rename":
            tensors[key.replace(*rng.choice(RENAMED))] = tensor
        elif how == "retype":
            tensors[key] = tensor.to(rng.choice(DTYPES))
        elif how == "reshape":
            tensors[key] = rng.choice(RESHAPED)(tensor)
        elif how == "recase":
            tensors[rng.choice([key.upper(), key.lower(), key.title()])] = tensor
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )
    return f"{how} {key}"


def spoil_bytes(rng: random.Random, folder: Path) -> str:
    path, how = folder / rng.choice([CONFIG, WEIGHTS]), rng.choice(["truncate", "flip", "insert"])
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) if rng.random() < 0.5 else min(600, len(data)))  # half of them in the header
    if how == "truncate":
        del data[at:]
    elif how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    else:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    path.write_bytes(data)
    return f"{how} {path.name} at {at}"


def test_a_spoilt_adapter_has_the_outputs_of_peft_or_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    base, rng = base_of(tiny_llama), random.Random(0)
    before = copy_of_weights(base.model)
    for name in SOUND:
        ADAPTERS[name].build(tmp_path / name)
    num_taken = num_refused = 0
    for _ in range(int(os.environ.get("ORAL_TEST_MUTATIONS", "80"))):
        name = rng.choice(SOUND)
        folder = tmp_path / "spoilt"
        shutil.copytree(tmp_path / name, folder)
        done = rng.choice([spoil_config, spoil_tensors, spoil_bytes])(rng, folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                intake = take_in(base, read_folder(folder), "it")
                difference, size = difference_from_peft(base, intake, folder)
            is_finite = math.isfinite(size)  # a large alpha makes peft's own outputs overflow
            assert not is_finite or difference <= 1e-5 * max(1.0, size), f"{name}: {done}"
            num_taken += 1
        except OralError as error:
            assert str(error).encode() and "\n" not in str(error), f"{name}: {done}"
            num_refused += 1
        except Exception as error:
            pytest.fail(f"{name}: {done}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    assert num_taken > 5 and num_refused > 5, "a test of both"
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
