"""The two ways of docs/dev/architecture.md are walked: a request and a night call what the page says, in that order."""

import contextlib
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from cli_fixtures import build_place
from nightly_fixtures import copied, land, tiny_config
from service_fixtures import open_test_service

from oral_ray.nightly import regenerate
from oral_ray.pipeline.run import open_run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dev/architecture.md").read_text(encoding="utf-8")
THROUGH_RAY = ("serve/app.py", "serve/replica.py:Replica.")  # the service of these tests has no wire

Step = str  # "file:function"


def steps_of(heading: str) -> list[Step]:
    """The calls of the table below a heading."""
    table = PAGE[PAGE.index(heading) :].split("\n## ")[0]
    return [f"{file}:{name}" for file, name in re.findall(r"^\| \d+ \| `([\w/.]+)` \| `([\w.]+)` \|", table, re.M)]


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

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def first_out_of_order(steps: Sequence[Step], seen: Sequence[Step]) -> Step | None:
    """The first of the steps that does not come after the ones before it; None where all do."""
    left = iter(seen)
    return next((step for step in steps if step not in left), None)


def test_a_prompt_goes_the_way_that_the_page_writes_down(tiny_bert: Path, tmp_path: Path):
    steps = [step for step in steps_of("## A prompt") if not step.startswith(THROUGH_RAY)]
    service = open_test_service(build_place(tmp_path, tiny_bert))
    body = {"prompt": "Which metal is it?", "base": "v1"}
    with recorded(steps) as seen:
        answer = service.ask(lambda client: client.post("/v1/adapters", json=body))
    assert answer.status_code == 200 and len(steps) > 10
    assert first_out_of_order(steps, seen) is None
    assert seen.count("oral_ray/generation/service.py:Stock.order") == 2
    assert seen.count("oral_ray/generation/service.py:GenerationService.condition") == 2


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
