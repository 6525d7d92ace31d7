"""Every input of a folder of wild ones, tried once: WILD/B (adapters) and WILD/cstore/bases (checkpoints) -> one table.

    WILD=/some/folder python infra/dev/wild.py out/wild.json          # the folder that shared/wild's makers have filled

A row per input: name, kind, verdict (taken, refused), reason, difference. The difference of an adapter is the largest of
its outputs from peft's, that of a checkpoint the largest of its loaded tensors from its files' (null: nothing to
compare). The exit code is 1 where anything raised what is no sentence for a user.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from oral_ray.bases.loading import open_base
from oral_ray.bases.spec import read_tensors
from oral_ray.errors import OralError
from oral_ray.evaluation import verify
from oral_ray.objects import FileObjects

Row = dict[str, object]


def adapter_row(folder: Path) -> Row:
    """Verify an adapter on the base that its file BASE names, the tiny Llama where it has none."""
    named = folder / "BASE"
    base = named.read_text().strip() if named.is_file() else str(folder.parents[1] / "tiny" / "llama")
    found = verify.verify_adapter(folder, base)
    return {"verdict": "taken", "reason": f"{found.verdict}: {found.reason}", "difference": found.difference}


def base_row(folder: Path) -> Row:
    """Describe and load a checkpoint, and compare what is loaded with the tensors that it was described by."""
    base = open_base(str(folder))
    state = base.model.state_dict()
    compared = [float((state[name].float() - tensor).abs().max()) for name, tensor in stored(folder, state)]
    reason = f"{len(compared)} of {len(state)} tensors compared with the file's of the same name"
    return {"verdict": "taken", "reason": reason, "difference": max(compared, default=None)}


def stored(folder: Path, state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint's files under the names of the loaded ones; one prefix may be there or missing."""
    by_end = {name.partition(".")[2]: name for name in state} | {name: name for name in state}
    for key, entry in read_tensors(FileObjects(folder)).items():
        name = by_end.get(key) or by_end.get(key.partition(".")[2])
        if name and tuple(entry.shape) == tuple(state[name].shape):
            with safe_open(folder / entry.key, "pt") as file:
                yield name, file.get_tensor(key).float()


def row(kind: str, path: Path, look: Callable[[Path], Row]) -> Row:
    """A row, also where looking at it fails: `traceback` is a defect of ours."""
    name = path.name.encode(errors="backslashreplace").decode()
    try:
        found = look(path)
    except OralError as error:
        found = {"verdict": "refused", "reason": " ".join(str(error).split()), "difference": None}
    except Exception as error:
        traceback.print_exc(limit=-3)
        found = {"verdict": "traceback", "reason": f"{type(error).__name__}: {error}", "difference": None}
    return {"name": name, "kind": kind, **found}


def main(wild: Path, out: Path) -> int:
    verify.open_base = cache(open_base)  # type: ignore[attr-defined]  # a dozen bases, a hundred adapters
    adapters = [path for path in sorted((wild / "B").iterdir()) if path.is_dir()]
    rows = [row("adapter", path, adapter_row) for path in adapters]
    rows += [row("checkpoint", path, base_row) for path in sorted((wild / "cstore" / "bases").iterdir())]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1), encoding="utf-8", errors="backslashreplace")
    for found in rows:
        name = str(found["name"])[:40].replace("\n", "\\n")
        line = f"{found['kind']:10} {name:40} {found['verdict']:9} {found['difference']} {found['reason']}"
        print(line.encode(errors="backslashreplace").decode())
    counts = {word: sum(found["verdict"] == word for found in rows) for word in ("taken", "refused", "traceback")}
    print(f"{len(rows)} inputs: {counts}; largest difference {max((r['difference'] or 0.0 for r in rows), default=0)}")
    return 1 if counts["traceback"] else 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main(Path(os.environ["WILD"]), Path(sys.argv[1] if len(sys.argv) > 1 else "out/wild.json")))
