"""Compares two states of the code on known faults of intake: what gets in is what was meant, or is refused by its name.

Every check is a black box. It gives small inputs, as they are found in the wild, to one state of the code (by the command
line, the jobs, the HTTP service, or functions that both states have) and says `ok`, or FAULT with a reason in one line.
`broken` means that the check itself could not run on that state. Checks whose ids begin with the same number belong to one
fault; `--list` prints every check with the tests of the present code that say the same.

    git worktree add /tmp/old 81d0170                       # the state in which the faults were seen
    python infra/dev/faults.py --code /tmp/old --code . --json out/faults.json
    python infra/dev/faults.py --code . --only 5,14a        # some of them; a number means all of its fault
    python infra/dev/faults.py --list

Some checks need a store with a trained generator: it is made once per state by that state's own job (two short trainings
on Ray), below `--work`, which also keeps the inputs for the next time. Exit code 1 where the last state has a FAULT.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from fault_checks import bases, loras, nights, service, store
from fault_checks.place import CHECKS, PRESENT, Check, FaultError, Place, make_inputs

PARTS = (bases, loras, store, nights, service)
"""The modules that register the checks."""

Row = dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--code", type=Path, action="append", default=[], help="a clone or worktree; give two to compare"
    )
    parser.add_argument("--only", default="", help="ids of checks or numbers of faults, with commas (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps inputs and trained stores (default: a temporary one)"
    )
    parser.add_argument("--lock", type=Path, help="file to hold by flock whenever Ray is started")
    parser.add_argument("--list", action="store_true", help="print fault, check and tests, and run nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = select(args.only)
    if args.list:
        print_list(chosen)
        return 0
    if not args.code:
        parser.error("name at least one state of the code with --code")
    states = [path.resolve() for path in args.code]
    if args.worker:
        return run_checks(chosen, states[0], args.work, args.lock)
    with tempfile.TemporaryDirectory(prefix="oral-faults-") as name:
        work = (args.work or Path(name)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, states, args.lock)
        columns = {str(code): start_worker(code, work, args) for code in states}
    rows = [row_of(check, columns) for check in chosen]
    print_table(rows, list(columns))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    last = str(states[-1])
    return 1 if any(row[last].startswith(("FAULT", "broken")) for row in rows) else 0


def select(only: str) -> list[Check]:
    """The checks of some ids and fault numbers, in the order of the faults; all for the empty text."""
    wanted = {item.strip() for item in only.split(",") if item.strip()}
    ordered = sorted(CHECKS.values(), key=lambda check: (check.fault, check.id))
    return [check for check in ordered if not wanted or check.id in wanted or str(check.fault) in wanted]


def print_list(chosen: Sequence[Check]) -> None:
    """A line per check with its claim, and below it the tests of the present code."""
    for check in chosen:
        print(f"{check.id:4} {check.claim}")
        for test in check.tests:
            print(f"       {test}")


def environment(code: Path) -> dict[str, str]:
    """The environment in which a state of the code runs: its own modules and test fixtures come first."""
    parts = [code, code / "tests", PRESENT / "tests/wild", PRESENT / "infra/dev"]
    about = {
        "PYTHONPATH": os.pathsep.join(map(str, parts)), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1",
    }  # fmt: skip
    return os.environ | about


def prepare(work: Path, states: Sequence[Path], lock: Path | None) -> None:
    """Make what is not there yet: the inputs, and a store per state in which two configurations have a generator."""
    if not (work / "inputs").exists():
        shutil.rmtree(work / "half", ignore_errors=True)
        (work / "half").mkdir()
        make_inputs(work / "half", environment(PRESENT))
        (work / "half").rename(work / "inputs")
    for code in states:
        target = work / f"store-{code.name}"
        for name, steps in (("tiny", 40), ("other", 41)):
            if not list(target.glob(f"current/{name}/*.json")):
                train(code, work, target, name, steps, lock)


def train(code: Path, work: Path, target: Path, name: str, steps: int, lock: Path | None) -> None:
    """Train the generator of a configuration by the state's own job, in the smallest form."""
    command = [
        *(["flock", str(lock)] if lock else []), sys.executable, str(code / "jobs/train.py"),
        "--config", str(code / "tests/tiny.toml"), "--store", str(target), f"out={work / 'out'}", f"name={name}",
        f"training.steps={steps}", *nights.SMALL, f"bases.versions.0.origin.source={work / 'inputs/sound/bases/bert'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=code, env=environment(code), stdout=subprocess.DEVNULL)


def start_worker(code: Path, work: Path, args: argparse.Namespace) -> dict[str, str]:
    """Run the checks in a process that has one state of the code, and return its verdicts by check."""
    command = [sys.executable, __file__, "--worker", "--code", code, "--work", work, "--only", args.only]
    command += ["--lock", args.lock.resolve()] if args.lock else []
    verdicts = {}
    process = subprocess.Popen(
        list(map(str, command)), cwd=code, env=environment(code), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found = json.loads(line)
            verdicts[found["id"]] = found["verdict"]
            line = f"{code.name}  {found['id']:4} {found['wall_s']:6.1f} s  {found['verdict'][:160]}"
            print(line, file=sys.stderr, flush=True)
    process.wait()
    return verdicts


def run_checks(chosen: Sequence[Check], code: Path, work: Path, lock: Path | None) -> int:
    """The worker: import the code under test once, then give each check a forked process of its own."""
    # an editable install would lend modules of another clone to a state that does not have them
    sys.meta_path[:] = [finder for finder in sys.meta_path if "_EditableFinder" not in repr(finder)]
    import peft  # noqa: F401  # imported here, its time is not every check's
    import torch
    import transformers
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import oral_ray.adapters.lora
    import oral_ray.bases.loading  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for check in chosen:
        with tempfile.TemporaryDirectory(prefix="oral-fault-", ignore_cleanup_errors=True) as name:
            place = Place(code, work / "inputs", work / f"store-{code.name}", Path(name), lock)
            started = time.monotonic()
            verdict = in_fork(check, place)
            took = time.monotonic() - started
        print(json.dumps({"id": check.id, "verdict": verdict, "wall_s": took}), flush=True)
    return 0


def in_fork(check: Check, place: Place) -> str:
    """The verdict of a check that runs in a process group of its own, which ends with its time."""
    answer = place.work.with_name(place.work.name + ".verdict")
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        verdict = verdict_of(check, place)
        answer.write_text(foreign_modules(place.code) or verdict, errors="backslashreplace")
        os._exit(0)
    deadline = time.monotonic() + check.timeout_s
    ended = None
    while ended is None and time.monotonic() < deadline:
        ended = os.waitid(
            os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        )  # its number stays taken until it is reaped
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # also what the check has started and left
    os.waitpid(pid, 0)
    if ended is None:
        return f"broken: took longer than {check.timeout_s:.0f} s"
    try:
        return answer.read_text()
    except FileNotFoundError:
        return "FAULT: the process of the check ended by a signal"
    finally:
        answer.unlink(missing_ok=True)


def verdict_of(check: Check, place: Place) -> str:
    """`ok`, `FAULT: reason`, or `broken: reason` where the check itself fails."""
    try:
        check.run(place)
        return "ok"
    except FaultError as error:
        return f"FAULT: {' '.join(str(error).split())}"
    except Exception as error:
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        in_code = any(file.is_relative_to(place.code / room) for file in files for room in ("oral_ray", "serve"))
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:240]} (in {files[-1].name})"
        return f"{'FAULT: raises' if in_code else 'broken:'} {reason}"


def foreign_modules(code: Path) -> str:
    """What makes a verdict worthless: modules of the product that were imported from another place."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in ("oral_ray", "serve") and file and not Path(file).is_relative_to(code):
            return f"broken: {name} was imported from {file}"
    return ""


def row_of(check: Check, columns: dict[str, dict[str, str]]) -> Row:
    verdicts = {code: found.get(check.id, "broken: the worker ended before it") for code, found in columns.items()}
    return {
        "fault": str(check.fault),
        "check": check.id,
        "claim": check.claim,
        "tests": ", ".join(check.tests),
    } | verdicts


def print_table(rows: Sequence[Row], states: Sequence[str]) -> None:
    """A line per check with one word per state, and below it the reasons."""
    print(f"{'check':6}" + "".join(f"{Path(code).name:9}" for code in states) + "what holds where it is mended")
    for row in rows:
        print(f"{row['check']:6}" + "".join(f"{row[code].partition(':')[0][:8]:9}" for code in states) + row["claim"])
        for code in states:
            if row[code] != "ok":
                print(f"{'':6}{Path(code).name}: {row[code]}")
    for code in states:
        words = [row[code].partition(":")[0] for row in rows]
        print(f"{code}: " + ", ".join(f"{words.count(word)} {word}" for word in ("ok", "FAULT", "broken")))


if __name__ == "__main__":
    sys.exit(main())
