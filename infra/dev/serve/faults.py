"""`make serve-faults`: what the service answers while things break under load.

python infra/dev/serve/faults.py --store STORE   ->  out/bench/serve_faults.json
    [{fault, requests, ok, unavailable, unanswered, not_a_problem, wrong, jobs, jobs_lost, recovered_s}]

Eight clients ask for new adapters all the time, ten jobs are accepted just before the fault. `unavailable` are 503 with
Retry-After, `unanswered` are connections that broke, `not_a_problem` are errors of any other form. `wrong` are answers
whose adapter is not (by digest, prompt and seed) what was asked for, or differs from the same sample made directly.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from load import wording
from running import BASE, ROOT, Running, begin_load, copy_of, end_load, wait_until, write

from oral_ray.config import load_config
from oral_ray.generation.service import open_service
from oral_ray.generator.model import save_generator
from oral_ray.objects import open_objects
from oral_ray.store.adapters import AdapterStore
from oral_ray.store.generators import current_generator, get_generator, promote_generator, put_generator

NUM_JOBS, LOAD_S = 10, 24


def kill_replica(service: Running, store: Path) -> None:
    os.kill(service.pids("generator")[0], signal.SIGKILL)


def kill_ingress(service: Running, store: Path) -> None:
    os.kill(service.pids("ingress")[0], signal.SIGKILL)


def replace_generator(service: Running, store: Path) -> None:
    objects = open_objects(str(store))
    old = get_generator(objects, str(current_generator(objects, "quickstart")))
    recipe = old.spec.recipe[:-4] + "beef"
    for parameter in old.network.parameters():
        parameter.data.mul_(1.05)
    with tempfile.TemporaryDirectory() as folder:
        save_generator(dataclasses.replace(old, spec=old.spec.model_copy(update={"recipe": recipe})), Path(folder))
        put_generator(objects, recipe, Path(folder))
    promote_generator(objects, "quickstart", recipe)


def hide_store(service: Running, store: Path) -> None:
    hidden = store.with_name(store.name + "-hidden")
    store.rename(hidden)
    time.sleep(20)
    assert not store.exists(), "something was written where the store had been"
    hidden.rename(store)


def fill_disk(service: Running, store: Path) -> None:
    """The adapters lie on a tmpfs (see main); a file takes what is left of it for ten seconds."""
    ballast = store / "adapters/ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    time.sleep(10)
    ballast.unlink()


FAULTS = {
    "replica killed with -9": kill_replica, "generator replaced": replace_generator, "store away for 20 s": hide_store,
    "disk full for 10 s": fill_disk, "the only ingress killed with -9": kill_ingress,
    "one of two ingresses killed with -9": kill_ingress,
}  # fmt: skip
TWO_REPLICAS = ("serve.min_replicas=2", "serve.max_replicas=2", "serve.cpus_per_replica=0.5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--only", choices=FAULTS, action="append", help="these faults; the others' rows stay")
    args = parser.parse_args()
    kept = ROOT / "out/bench/serve_faults.json"
    rows = {row["fault"]: row for row in (json.loads(kept.read_text()) if args.only and kept.exists() else [])}
    with copy_of(args.store) as store, small_disk(store / "adapters"):
        service = Running(args.config, store)
        try:
            service.deploy(*TWO_REPLICAS)
            for number, (name, fault) in enumerate(FAULTS.items(), 1):
                if name in (args.only or FAULTS):
                    if "two ingresses" in name:
                        service.deploy(*TWO_REPLICAS, "serve.ingress_replicas=2")
                    rows[name] = {"fault": name, **suffer(service, store, args.config, fault, 10**7 * number)}
                    print(json.dumps(rows[name]), flush=True)
                    write("serve_faults.json", list(rows.values()))
        finally:
            service.stop()


def suffer(service: Running, store: Path, config: str, fault, seed: int) -> dict:
    load = begin_load(service.port, 8, seed, seconds=LOAD_S + 20 * (fault is hide_store))
    jobs = end_load(
        begin_load(service.port, 1, seed + 5 * 10**6, requests=NUM_JOBS, headers="Prefer: respond-async\r\n")
    )
    time.sleep(3)
    fault(service, store)
    recovered_s = wait_until(lambda: works(service, seed + 9 * 10**6), 120)
    seen = end_load(load)
    ids = list(jobs["answers"].values())
    accepted = [name for name in ids if len(name) == 32]
    ended = Counter()

    def all_ended() -> bool:
        ended.clear()
        ended.update(service.get(f"/v1/jobs/{name}")["status"] for name in accepted)
        return ended["queued"] == 0

    wait_until(all_ended, 120, 1)
    statuses = Counter(row[2] for row in seen["rows"])
    problems = [row for row in seen["rows"] if row[2] not in (0, 200, 202)]
    return {
        "requests": len(seen["rows"]), "ok": statuses[200] + statuses[202],
        "unavailable": sum(row[2] == 503 and row[3].endswith("; retry") for row in problems),
        "unanswered": statuses[0],
        "not_a_problem": sum(not row[3].startswith("application/problem+json") for row in problems),
        "wrong": count_wrong(store, config, {int(k): v for k, v in seen["answers"].items() if len(v) == 64}),
        "jobs": len(accepted), "jobs_lost": len(accepted) - ended["succeeded"], "recovered_s": round(recovered_s, 1),
    }  # fmt: skip


def works(service: Running, seed: int) -> bool:
    seen = end_load(begin_load(service.port, 1, seed + time.time_ns() % 10**6, requests=1))["rows"]
    return bool(seen) and seen[0][2] in (200, 202)


def count_wrong(store: Path, config: str, answers: dict[int, str]) -> int:
    """Answers that are not what was asked for; twelve of them are sampled again, directly, and compared by value."""
    settings = load_config(config, [f"store.uri={store}", "determinism=false"])
    adapters, wrong = AdapterStore(open_objects(str(store))), 0
    services = {}
    for number, (seed, digest) in enumerate(answers.items()):
        artifact = adapters.get(digest)  # raises where the content is not what the id names
        origin = artifact.provenance
        wrong += (origin.prompt, origin.base, origin.seed) != (wording(seed), BASE, seed)
        if number % max(1, len(answers) // 12) == 0:
            if origin.generator not in services:
                services[origin.generator] = open_service(settings, recipe=origin.generator)
            service = services[origin.generator]
            [made] = service.factory.generate([service.catalog.condition(wording(seed), BASE, seed)])
            again = made.artifact()
            far = max(
                float((again.tensors[k] - t).abs().max() / t.abs().max().clamp(min=1e-9))
                for k, t in artifact.tensors.items()
            )
            wrong += far > 1e-3
    return wrong


@contextlib.contextmanager
def small_disk(folder: Path):
    """Moves a folder onto a tmpfs of its own, 2 GB larger than what it holds."""
    kept = folder.with_name("adapters-before")
    folder.rename(kept)
    folder.mkdir()
    held = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={held + 2_000_000_000}", "tmpfs", str(folder)], check=True)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


if __name__ == "__main__":
    main()
