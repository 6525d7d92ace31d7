"""Only the best candidate is ever published, only when it beats the base, and every refusal has a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.spec import build_spec
from oral_ray.config import LoraSettings
from oral_ray.release import decide, plan_releases

ARMS = ("generated", "reuse_new", "reuse_old")
ACCURACY = st.integers(0, 20).map(lambda hits: hits / 20)  # few values, so that ties are common
SCORES = st.dictionaries(st.sampled_from(ARMS), ACCURACY).flatmap(
    lambda scores: ACCURACY.map(lambda base: scores | {"base": base})
)


@given(SCORES, st.permutations(ARMS), ACCURACY)
def test_what_is_published_has_the_highest_score_and_beats_base_by_the_gain(
    scores: dict[str, float], candidates: list[str], min_gain: float
):
    arm = decide(scores, candidates, min_gain).arm
    present = [name for name in candidates if name in scores]
    best = max((scores[name] for name in present), default=-1.0)
    if best <= scores["base"] + min_gain:
        assert arm is None
    else:
        assert arm == next(name for name in present if scores[name] == best)


@given(SCORES)
def test_a_generated_adapter_worse_than_reuse_is_never_published(scores: dict[str, float]):
    if decide(scores, ARMS, 0.0).arm == "generated":
        assert all(scores["generated"] >= scores[arm] for arm in ARMS if arm in scores)


def test_the_better_of_two_candidates_wins_wherever_it_stands():
    scores = {"generated": 0.8, "reuse_new": 0.9, "base": 0.5}
    assert decide(scores, ("generated", "reuse_new"), 0.0).arm == "reuse_new"
    assert decide(scores | {"generated": 0.95}, ("reuse_new", "generated"), 0.0).arm == "generated"


def test_the_earlier_candidate_wins_a_tie():
    scores = {"generated": 0.8, "reuse_new": 0.8, "base": 0.5}
    assert decide(scores, ("generated", "reuse_new"), 0.0).arm == "generated"
    assert decide(scores, ("reuse_new", "generated"), 0.0).arm == "reuse_new"


def test_only_named_candidates_count():
    assert decide({"generated": 0.8, "trained": 0.9, "base": 0.5}, ARMS, 0.0).arm == "generated"


@pytest.mark.parametrize(("score", "min_gain"), [(0.5, 0.0), (0.4, 0.0), (0.55, 0.1), (0.75, 0.25)])
def test_nothing_is_published_where_nothing_beats_the_base(score: float, min_gain: float):
    decision = decide({"generated": score, "base": 0.5}, ARMS, min_gain)
    assert decision.arm is None
    assert decision.reason == f"no candidate beats base by more than {min_gain}: generated {score:.4f}, base 0.5000"


def test_nothing_is_published_where_there_is_no_candidate():
    decision = decide({"trained": 0.9, "base": 0.5}, ARMS, 0.0)
    assert (decision.arm, decision.reason) == (None, "no candidate could be made")


def test_a_candidate_without_a_finite_score_is_never_published():
    assert decide({"generated": float("nan"), "base": 0.5}, ARMS, 0.0).arm is None


def llama(base_id: str, hidden: int = 16) -> BaseRecord:
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    return BaseRecord(id=base_id, uri="u", spec=build_spec(config, {}, "x"), fingerprint=f"fingerprint-of-{base_id}")


def plan(*bases: BaseRecord, known: str | None = None, released=(), r: int = 4) -> list[tuple[str, str, str, str]]:
    items = plan_releases(bases, ["t1", "t2"], {known or llama("x").spec.digest}, LoraSettings(r=r), released)
    return [(item.base, item.task, item.action, item.reason) for item in items]


def test_every_task_of_every_new_base_is_planned_in_order():
    wanted = [(base, task, "generate", "new base version or task") for base in ("v1", "v2") for task in ("t1", "t2")]
    assert plan(llama("v1"), llama("v2")) == wanted


def test_what_is_released_for_the_same_content_is_skipped():
    items = plan(llama("v1"), llama("v2"), released={("fingerprint-of-v1", "t2"), ("v2", "t1")})
    assert [item[2] for item in items] == ["generate", "skip", "generate", "generate"]
    assert items[1] == ("v1", "t2", "skip", "already released")


def test_an_architecture_the_generator_has_not_seen_is_skipped_with_its_digest():
    other = llama("v2", hidden=32)
    items = plan(llama("v1"), other)
    assert [item[2] for item in items] == ["generate", "generate", "skip", "skip"]
    assert items[2][3] == f"the generator has not seen architecture {other.spec.digest[:12]} (llama)"


def test_a_rank_that_does_not_fit_is_skipped_with_the_largest_that_does():
    items = plan(llama("v1"), r=9)  # v has 2 x 4 outputs
    assert [item[2] for item in items] == ["skip", "skip"]
    assert items[0][3] == "rank r=9 is larger than the smallest target module allows (8); lower lora.r"
    assert [item[2] for item in plan(llama("v1"), r=8)] == ["generate", "generate"]
