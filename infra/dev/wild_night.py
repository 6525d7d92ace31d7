"""A night over checkpoints as they are found in the wild, beside sound ones: who is released, who is named, and why.

The real job (`jobs/regenerate.py`, a process of its own) runs over a small trained store, into which every folder of
`$WILD/cstore/bases` is copied, some more that no archive can carry (a file name in Latin-1, a lone surrogate in a header,
a circle of links), and three sound versions of the base that the generator knows. A row says of each folder whether it
was released, skipped, failed, or not due, and the reason as the summary gives it.

    WILD=/some/folder python infra/dev/wild_night.py --out out/wild_night.json     # store made anew, 2 minutes on Ray
    WILD=/some/folder python infra/dev/wild_night.py --store DIR --base DIR

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

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from chaos import build_store  # noqa: E402
from nightly_fixtures import copied, land, weights_of  # noqa: E402
from safetensors.numpy import save  # noqa: E402

from oral_ray.errors import printable  # noqa: E402

SOUND = ("sound-1", "sound-2", "sound-3")


def main() -> int:
    """Run the night, write the rows, print what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a trained store of tests/tiny.toml (default: made anew)")
    parser.add_argument("--base", type=Path, help="the tiny base that the store was made from")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "wild_night.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oral-wild-") as name:
        work = Path(name)
        pristine, base = (args.store, args.base) if args.store else build_store(work)
        store = copied(pristine, work / "store")
        names = fill(store, Path(os.environ["WILD"]) / "cstore" / "bases")
        done, summary = night(store, base, work / "night.json")
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


def fill(store: Path, wild: Path) -> list[str]:
    """Land the wild folders, some more, and the sound ones, all an hour old where they are not about time; their names."""
    bases = store / "bases"
    before, wild_names = names_in(bases), names_in(wild)
    for path in wild.iterdir():
        if path.is_dir():
            shutil.copytree(path, bases / path.name, symlinks=True)
        else:
            shutil.copy2(path, bases)
    for name in (*SOUND, "latin1-file", "surrogate-in-header", "link-in-a-circle", "removed-from-under-a-link"):
        land(store, name)
    Path(os.fsdecode(os.fsencode(bases / "latin1-file") + b"/caf\xe9.txt")).write_text("x")
    weights = {key: value.numpy() for key, value in weights_of(bases / "surrogate-in-header").items()}
    data = save(weights | {"note_1234": weights[min(weights)]})
    (bases / "surrogate-in-header/model.safetensors").write_bytes(data.replace(b"note_1234", b"not\\ud800"))
    (bases / "link-in-a-circle/vocab.txt").symlink_to("vocab.txt")
    (bases / "removed-from-under-a-link/vocab.txt").symlink_to("../gone/vocab.txt")
    new = names_in(bases) - before
    an_hour_ago = time.time() - 3600
    for name in new - wild_names:
        for path in (bases / name).iterdir():
            os.utime(path, (an_hour_ago, an_hour_ago), follow_symlinks=False)
    return [printable(name) for name in new]


def names_in(folder: Path) -> set[str]:
    """The names directly below a folder."""
    return {path.name for path in folder.iterdir()}


def night(store: Path, base: Path, file: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the job said and what its summary holds."""
    command = [
        sys.executable, str(ROOT / "jobs/regenerate.py"), "--config", str(ROOT / "tests/tiny.toml"), "--store", str(store),
        "--summary", str(file), "--summary", str(file.with_suffix(".html")), "--summary", str(file.with_suffix(".txt")),
        f"bases.versions.0.origin.source={base}", "cluster.address=none", 'regenerate.bases=["*"]', "regenerate.retries=0",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
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
