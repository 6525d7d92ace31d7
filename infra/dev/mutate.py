"""Damages sound checkpoints and adapters at random and demands equal logits or a refusal: out/mutations.json.

    python infra/dev/mutate.py --num 10000 [--first 0] [--processes 2]

Every folder is that of a seed, so a fault is seen again by its number: --num 1 --first N. Exit code 1 where there is one.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "wild")]


def one(number: int, sound: Path) -> tuple[int, str, list[str], str, str]:
    """(number, folder, what was done, verdict, reason or fault)."""
    from judges import judge_adapter, judge_checkpoint
    from mutations import damaged

    checkpoints, adapters = sorted((sound / "bases").iterdir()), sorted((sound / "adapters").iterdir())
    every = [*checkpoints, *adapters]
    source = every[number % len(every)]
    with tempfile.TemporaryDirectory(prefix="oral-mutate-") as name:
        target = Path(name) / "folder"
        damage = damaged(source, target, number)
        try:
            if source in checkpoints:
                verdict, reason = judge_checkpoint(source, target, damage)
            else:
                base = sound / "bases" / source.name.partition("--")[0]
                verdict, reason = judge_adapter(source, base, target, damage)
        except Exception as error:  # a fault is a row of the report, and the next number is tried
            verdict, reason = "FAULT", f"{type(error).__name__}: {error}"
        return number, source.name, damage.words, verdict, reason.replace(str(target), "FOLDER")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/mutations.json"))
    args = parser.parse_args()
    from sound import make_sound

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oral-sound-") as name, ProcessPoolExecutor(args.processes) as pool:
        sound = make_sound(Path(name))
        numbers = range(args.first, args.first + args.num)
        rows = list(pool.map(one, numbers, [sound] * len(numbers), chunksize=16))
    verdicts = Counter(row[3] for row in rows)
    report = {
        "num": len(rows), "first": args.first, "verdicts": dict(verdicts), "wall_s": round(time.monotonic() - started),
        "faults": [row for row in rows if row[3] == "FAULT"],
        "refusals": {reason: n for reason, n in Counter(row[4][:160] for row in rows if row[3] == "refused").most_common(200)},
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False))
    for row in report["faults"][:40]:
        print(*row, sep="  ")
    print(f"{len(rows)} mutations: {dict(verdicts)}, {report['wall_s']} s; {args.out}")
    return 1 if verdicts["FAULT"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
