"""What the documents say of the code is there: files, functions, floors, rooms, links."""

import ast
import itertools
import re
from pathlib import Path

import pytest
from architecture import FLOORS, RULES, read_sources

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs/dev/architecture.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", ARCHITECTURE, re.M)


@pytest.mark.parametrize(("file", "function"), sorted({(file, function) for _, file, function in CALLS}))
def test_every_call_of_the_architecture_page_is_a_function_that_is_there(file: str, function: str):
    tree: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for name in function.split("."):
        inside = {node.name: node for node in getattr(tree, "body", ()) if hasattr(node, "name")}
        assert name in inside, f"{file} has no {function}; write down which function takes its place"
        tree = inside[name]


def test_both_ways_of_the_architecture_page_are_numbered_without_a_gap():
    numbers = [int(number) for number, *_ in CALLS]
    starts = [i for i, number in enumerate(numbers) if number == 1] + [len(numbers)]
    assert len(starts) == 3
    for first, after in itertools.pairwise(starts):
        assert numbers[first:after] == list(range(1, after - first + 1))


def test_every_rule_of_the_house_stands_on_the_architecture_page():
    table = ARCHITECTURE[ARCHITECTURE.index("| rule |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in row.split("|")[1].strip().split(", ")}
    assert named == {*RULES}


def test_the_floors_of_the_contributing_page_are_those_that_are_asserted():
    picture = CONTRIBUTING[CONTRIBUTING.index("```text\n") :].split("```")[1].splitlines()[1:]
    floors = [tuple(re.split(r"\s{3,}", line)[0].split()) for line in picture]
    assert [{*floor} for floor in reversed(floors)] == [{*floor} for floor in FLOORS]


def test_every_file_that_the_contributing_page_names_is_there():
    named = re.findall(r"(?<![\w/])(?:oral_ray|tests|infra|docs)/[\w/.-]*\w", CONTRIBUTING)
    assert len(named) > 20
    gone = [name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()]
    assert gone == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/dev/architecture.md", "docs/dev/log.md"])
def test_every_link_between_the_pages_for_developers_leads_somewhere(page: str):
    for target in re.findall(r"\]\(([^)#:]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_contributing_page_can_be_read_in_one_go():
    assert len(CONTRIBUTING.splitlines()) <= 150


def test_the_readme_names_every_room():
    layout = README[README.index("## Layout") : README.index("## Configuration")]
    rooms = {source.room for source in read_sources(ROOT).values()} - {""}
    assert {room for room in rooms if f"{room}/" not in layout and f"{room}.py" not in layout} == set()


def test_a_second_ray_head_of_the_readme_has_ports_of_its_own_and_the_next_line_submits_to_it():
    second = README[README.index("start a second head") :]
    [head] = re.findall(r"^ray start --head .*--dashboard-port (\d+)", second, re.MULTILINE)
    submitted = re.findall(r"^ray job submit --address http://127\.0\.0\.1:(\d+)", README, re.MULTILINE)
    assert submitted == ["8265", head], "8265 is the first head's"
    assert "--port 6380" in second and "`ray stop`" in README and "Ctrl-C" in second
