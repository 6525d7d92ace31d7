"""The image is what the Makefile installs, where the manifests look for it; nothing builds it here, a linter reads it."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from manifests import IMAGE_HOME, ROOT, SERVE_ENVIRONMENT

DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of every stage of the Dockerfile, in order."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        verb, _, rest = line.strip().partition(" ")
        if verb == "FROM":
            source, _, name = (part.strip() for part in rest.partition(" AS "))
            found[name] = list(found.get(source, []))
        elif verb and name:
            found[name].append((verb, rest.strip()))
    return found


def test_the_image_holds_the_code_where_the_manifests_look_for_it():
    ignored = (ROOT / "infra/Dockerfile.dockerignore").read_text().split()
    for target in ("cpu", "cuda"):
        steps = stages()[target]
        assert ("WORKDIR", IMAGE_HOME.rstrip("/")) in steps
        copied = {s for verb, rest in steps if verb == "COPY" and "--from" not in rest for s in rest.split()[:-1]}
        assert copied >= {"oral_ray", "jobs", "serve", "infra/configs", "pyproject.toml"}
        assert [rest for verb, rest in steps if verb == "USER"] == ["1000:1000"]
        [venv] = [rest for verb, rest in steps if verb == "COPY" and "--from" in rest]
        assert venv == f"--from=builder-{target} {IMAGE_HOME}.venv .venv"
    for steps in stages().values():
        for verb, rest in steps:
            for source in rest.split()[:-1] if verb == "COPY" and "--from" not in rest else ():
                assert (ROOT / source).exists(), f"COPY {source}: not in the repository"
                wanted = [line for line in ignored if line.startswith("!") and source.startswith(line[1:])]
                assert wanted, f"COPY {source}: left out by Dockerfile.dockerignore"


def test_the_image_is_installed_as_the_makefile_does_and_keeps_no_build_tools():
    for target in ("cpu", "cuda"):
        [line] = [rest for verb, rest in stages()[f"builder-{target}"] if rest.endswith(".ok")]
        rule = line.split()[-1]
        made = subprocess.run(["make", "-nB", rule], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert re.search(r"pip install .*-e \"\.\[quickstart\]\" -c infra/constraints\.txt", made)
        runs = " ".join(rest for verb, rest in stages()[target] if verb == "RUN")
        assert not {"gcc", "make", "build-essential", "libc6-dev", "pip"} & set(runs.split())


def test_the_proxies_of_the_image_say_their_errors_as_problems():
    variables = " ".join(rest for verb, rest in stages()["cpu"] if verb == "ENV")
    setting = dict(item.split("=", 1) for item in variables.split())
    assert {name: value for name, value in setting.items() if name.startswith("RAY_SERVE_")} == SERVE_ENVIRONMENT
    module, _, name = setting["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert [middleware.cls.__name__ for middleware in getattr(import_module(module), name)()] == ["ProxyProblems"]


def test_the_linter_of_dockerfiles_finds_nothing():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, "-"], input=DOCKERFILE, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    bad = DOCKERFILE.replace("WORKDIR /opt/oral-ray\n", "WORKDIR opt\n")
    assert subprocess.run([linter, "-"], input=bad, capture_output=True, text=True, timeout=60).returncode == 1
