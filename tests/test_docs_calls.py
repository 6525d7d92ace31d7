"""The two ways of docs/dev/architecture.md are walked: a request and a night call what the page says, in that order."""

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from cli_fixtures import build_place
from nightly_fixtures import copied, land, tiny_config
from service_fixtures import open_test_service

from oral_ray.adapters.artifact import AdapterArtifact, Provenance
from oral_ray.adapters.sampled import SampledAdapter
from oral_ray.generation.condition import Condition
from oral_ray.nightly import regenerate
from oral_ray.pipeline.run import open_run
from serve.replica import Sampled
from serve.schema import GenerateRequest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dev/architecture.md").read_text(encoding="utf-8")
THROUGH_RAY = ("serve/replica.py:Replica.",)  # the service of these tests has no wire

Step = str  # "file:function"


def steps_of(heading: str) -> list[Step]:
    """The calls of the table below a heading."""
    table = PAGE[PAGE.index(heading) :].split("\n## ")[0]
    return [f"{file}:{name}" for file, name in re.findall(r"^\| \d+ \| `([\w/.]+)` \| `([\w.]+)` \|", table, re.M)]


@contextlib.contextmanager
def profiled(profile: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Tell `profile` of every call in this thread and in those that begin meanwhile."""
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


@contextlib.contextmanager
def recorded(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The calls of these functions, in this thread and in those that begin meanwhile, in order."""
    wanted, seen = {*steps}, list[Step]()
    last_names = {step.rpartition(":")[2].rpartition(".")[2] for step in steps} | {
        "create"
    }  # the route of its function

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in last_names and code.co_filename.startswith(str(ROOT)):
            file = Path(code.co_filename).relative_to(ROOT).as_posix()
            step = f"{file}:{code.co_qualname.partition('.<locals>')[0]}"
            if step in wanted:
                seen.append(step)

    with profiled(profile):
        yield seen


def first_out_of_order(steps: Sequence[Step], seen: Sequence[Step]) -> Step | None:
    """The first of the steps that does not come after the ones before it; None where all do."""
    left = iter(seen)
    return next((step for step in steps if step not in left), None)


ONCE = (
    "oral_ray/generation/catalog.py:GeneratorCatalog.condition",
    "oral_ray/generation/condition.py:Condition.__post_init__",
    "oral_ray/generator/condition.py:check_prompt",
    "oral_ray/generation/factory.py:AdapterFactory._provenance",
)
"""What makes or checks a carrier of the prompt."""
CARRIERS = (GenerateRequest, Condition, Provenance, SampledAdapter, AdapterArtifact, Sampled)


def carries(value: Any, prompt: str) -> bool:
    """Whether an argument is the prompt, holds it, or is a list of what holds it."""
    if isinstance(value, list | tuple):
        return any(carries(item, prompt) for item in value)
    return value == prompt if isinstance(value, str) else isinstance(value, CARRIERS)


@contextlib.contextmanager
def files_that_get(prompt: str) -> Iterator[set[str]]:
    """The files of serve/ and oral_ray/ with a function that is given the prompt, in whatever carrier."""
    seen = set[str]()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith((f"{ROOT}/serve/", f"{ROOT}/oral_ray/")):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4)]
            if any(carries(frame.f_locals.get(name), prompt) for name in names):
                seen.add(Path(code.co_filename).relative_to(ROOT).as_posix())

    with profiled(profile):
        yield seen


def test_a_prompt_goes_the_way_that_the_page_writes_down(tiny_bert: Path, tmp_path: Path):
    way = steps_of("## A prompt")
    steps = [step for step in way if not step.startswith(THROUGH_RAY)]
    service = open_test_service(build_place(tmp_path, tiny_bert))
    body = {"prompt": "Which metal is it?", "base": "v1"}
    with recorded([*steps, *ONCE]) as seen:
        answer = service.ask(lambda client: client.post("/v1/adapters", json=body))
    assert answer.status_code == 200 and len(way) == 6
    assert first_out_of_order(steps, seen) is None
    assert {step: seen.count(step) for step in ONCE} == dict.fromkeys(ONCE, 1)


def test_no_file_gets_a_prompt_but_those_that_the_page_names(tiny_bert: Path, tmp_path: Path):
    service = open_test_service(build_place(tmp_path, tiny_bert))
    body = {"prompt": "Which metal is it?", "base": "v1"}
    with files_that_get(body["prompt"]) as seen:
        answer = service.ask(lambda client: client.post("/v1/adapters", json=body))
    assert answer.status_code == 200
    part = PAGE[PAGE.index("## A prompt") : PAGE.index("## A base id")]
    named = set(re.findall(r"`((?:serve|oral_ray)/[\w/]+\.py)`", part))
    assert seen <= named, sorted(seen - named)
    assert {step.partition(":")[0] for step in steps_of("## A prompt")} <= seen


def test_a_base_id_goes_the_way_that_the_page_writes_down(
    whole_path: tuple[Path, Path, str], tiny_bert: Path, tmp_path: Path
):
    steps = steps_of("## A base id")
    store = copied(whole_path[0], tmp_path / "store")
    land(store, "v9")
    settings = ('regenerate.bases=["v9"]', 'regenerate.candidates=["generated"]', "regenerate.min_gain_over_base=-1.0")
    with recorded(steps) as seen:
        summary = regenerate.run_night(open_run(tiny_config(store, tiny_bert, *settings)))
    torch.use_deterministic_algorithms(False)
    assert {row["base"] for row in summary.published} == {"v9"} and len(steps) > 10
    assert first_out_of_order(steps, seen) is None


@pytest.mark.parametrize(("seen", "missed"), [("abc", None), ("aabxc", None), ("acb", "c"), ("ab", "c")])
def test_a_call_that_is_left_out_or_comes_too_early_is_seen(seen: str, missed: str | None):
    assert first_out_of_order("abc", seen) == missed
