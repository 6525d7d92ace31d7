"""Which version comes from which: lines of descent, and the newest one the generator may see."""

import pytest

from oral_ray.config import Config, build_config
from oral_ray.stages.corpus import lines, newest_seen


def version(name: str, parent: str = "", seen: bool = True, kind: str = "pretrain") -> dict:
    origin = {"kind": kind, "parent": parent} if parent else {"kind": "landed"}
    return {"id": name, "seen": seen, "origin": origin | ({"corpus": "news"} if parent and kind == "pretrain" else {})}


def config(*versions: dict) -> Config:
    return build_config({"bases": {"versions": list(versions)}})


def two_lines() -> Config:
    return config(
        version("t0"), version("n1", "t0"), version("n2", "n1"), version("n3", "n2", seen=False),
        version("c1", "t0"), version("c2", "c1"), version("c3", "c2", seen=False), version("c4", "c3", seen=False),
    )  # fmt: skip


def test_two_lines_meet_in_their_first_version():
    assert lines(two_lines()) == [[0, 1, 2], [0, 3, 4]]  # of t0, n1, n2, c1, c2


@pytest.mark.parametrize(
    ("base", "newest"),
    [("t0", "t0"), ("n1", "n1"), ("n2", "n2"), ("n3", "n2"), ("c3", "c2"), ("c4", "c2"), ("landed", "c2")],
)
def test_the_newest_seen_version_is_of_the_same_line(base: str, newest: str):
    assert newest_seen(two_lines(), base) == newest


def test_versions_of_unknown_descent_follow_each_other():
    landed = config(version("a"), version("b"), version("c"), version("d", seen=False))
    assert lines(landed) == [[0, 1, 2]]
    assert newest_seen(landed, "d") == "c"


def test_children_of_an_unseen_version_are_lines_of_their_own():
    assert lines(config(version("t0", seen=False), version("a", "t0"), version("b", "t0"))) == [[0], [1]]
