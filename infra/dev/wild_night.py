"""A night over checkpoints as they are found in the wild, beside sound ones: who is released, who is named, and why.

The real job (`jobs/regenerate.py`, a process of its own) runs over a small store whose generator was trained on two
versions of the wild folders' own tiny llama, so that most of them are loaded and not only looked at. Every folder of
`$WILD/cstore/bases` is copied there, some more that no archive can carry (a file name in Latin-1, a lone surrogate in a
header, a circle of links), and three sound versions. A row says of each folder whether it was released, skipped, failed,
or not due, and the reason as the summary gives it.

    WILD=/some/folder python infra/dev/wild_night.py --out out/wild_night.json
    WILD=/some/folder python infra/dev/wild_night.py --work DIR      # keeps the trained store there for the next time

Exit code 1 where a sound base is not released, a folder is not in the summary, or the job ends otherwise than with 0 or 3.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save, save_file

from oral_ray.errors import printable

ROOT = Path(__file__).parents[2]
SOUND = ("sound-1", "sound-2", "sound-3")


def main() -> int:
    """Run the night, write the rows, print what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, help="folder of the trained store (default: made anew, a few minutes on Ray)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "wild_night.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oral-wild-") as name:
        wild, pristine = Path(os.environ["WILD"]), args.work or Path(name) / "pristine"
        if not (pristine / "store" / "generators").exists():
            build_store(pristine, wild / "tiny" / "llama")
        store = Path(name) / "store"
        shutil.copytree(pristine / "store", store)
        names = fill(store, wild / "cstore" / "bases")
        done, summary = night(store, pristine / "night.toml", Path(name) / "night.json")
    rows = [row(name, summary) for name in sorted(names)]
    verdicts = Counter(item["verdict"] for item in rows)
    report = {"exit_code": done.returncode, "verdicts": verdicts, "rows": rows, "stderr": done.stderr[-2000:]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lost = [item["name"] for item in rows if item["verdict"] == "not named"]
    late = [item["name"] for item in rows if item["name"] in SOUND and item["verdict"] != "released"]
    print(
        f"exit code {done.returncode}, {dict(verdicts)}, not named: {lost}, sound and not released: {late}; {args.out}"
    )
    return 1 if lost or late or done.returncode not in (0, 3) else 0


def build_store(work: Path, llama: Path) -> None:
    """Train the generator of tests/tiny.toml on two versions of a base, by the real job: `store/` and `night.toml`."""
    work.mkdir(parents=True, exist_ok=True)
    versions = []
    for number, seen in enumerate((True, True, False)):
        folder = work / f"llama-{number}"
        shutil.copytree(llama, folder, dirs_exist_ok=True)
        shake(folder, 1e-3 * number, number)
        origin = f'origin = {{ kind = "import", source = "{folder}" }}'
        versions.append(f'[[bases.versions]]\nid = "llama-t{number}"\nseen = {str(seen).lower()}\n{origin}\n')
    rest = (ROOT / "tests/tiny.toml").read_text().partition("[tasks]")[2]
    (work / "night.toml").write_text('name = "night"\ndeterminism = true\n' + "\n".join(versions) + "\n[tasks]" + rest)
    command = [sys.executable, ROOT / "jobs/train.py", "--config", work / "night.toml", "--store", work / "store"]
    subprocess.run([*command, f"out={work / 'out'}"], check=True, cwd=ROOT, env=environment())


def shake(folder: Path, noise: float, seed: int) -> None:
    """Another version: every weight moved a little."""
    rng, path = np.random.default_rng(seed), folder / "model.safetensors"
    weights = {
        name: tensor + noise * rng.standard_normal(tensor.shape, np.float32) for name, tensor in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def environment() -> dict[str, str]:
    """The environment of the jobs."""
    about = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    return os.environ | about


def fill(store: Path, wild: Path) -> list[str]:
    """Land the wild folders, some more, and the sound ones, all an hour old where they are not about time; their names."""
    bases = store / "bases"
    before, wild_names = names_in(bases), names_in(wild)
    for path in wild.iterdir():
        if path.is_dir():
            shutil.copytree(path, bases / path.name, symlinks=True)
        else:
            shutil.copy2(path, bases)
    for number, name in enumerate(
        (*SOUND, "latin1-file", "surrogate-in-header", "link-in-a-circle", "link-to-nothing")
    ):
        shutil.copytree(bases / "llama-t2", bases / name)
        shake(bases / name, 1e-3, 100 + number)
    Path(os.fsdecode(os.fsencode(bases / "latin1-file") + b"/caf\xe9.txt")).write_text("x")
    weights = load_file(bases / "surrogate-in-header/model.safetensors")
    data = save(weights | {"note_1234": weights[min(weights)]})
    (bases / "surrogate-in-header/model.safetensors").write_bytes(data.replace(b"note_1234", b"not\\ud800"))
    (bases / "link-in-a-circle/vocab.txt").symlink_to("vocab.txt")
    (bases / "link-to-nothing/vocab.txt").symlink_to("gone/vocab.txt")
    (bases / "being-written-mtime-now/model.safetensors").touch()
    new = names_in(bases) - before
    an_hour_ago = time.time() - 3600
    for name in new - wild_names:
        for path in (bases / name).iterdir():
            os.utime(path, (an_hour_ago, an_hour_ago), follow_symlinks=False)
    return [printable(name) for name in new]


def names_in(folder: Path) -> set[str]:
    """The names directly below a folder."""
    return {path.name for path in folder.iterdir()}


def night(store: Path, config: Path, file: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the job said and what its summary holds."""
    command = [
        sys.executable, str(ROOT / "jobs/regenerate.py"), "--config", str(config), "--store", str(store),
        "--summary", str(file), "--summary", str(file.with_suffix(".html")), "--summary", str(file.with_suffix(".txt")),
        "cluster.address=none", 'regenerate.bases=["*"]', "regenerate.retries=0", "regenerate.quiet_period_s=300",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment(), text=True, capture_output=True)
    return done, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def row(name: str, summary: dict[str, Any]) -> dict[str, str]:
    """What the summary says of one folder."""
    for verdict, about in {
        "skipped": [(item["id"], item["reason"]) for item in summary.get("skipped_bases", ())],
        "failed": [(item["base"], item["reason"]) for item in summary.get("failed", ())],
        "released": [(item["base"], item["arm"]) for item in summary.get("published", ())],
        "nothing better": [(item["base"], item["decision"]["reason"]) for item in summary.get("outcomes", ())],
        "not due": [(item["base"], item["reason"]) for item in summary.get("plan", ())],
    }.items():
        if reasons := dict.fromkeys(reason for base, reason in about if base == name):
            return {"name": name, "verdict": verdict, "reason": " | ".join(reasons)}
    return {"name": name, "verdict": "not named", "reason": ""}


if __name__ == "__main__":
    sys.exit(main())
