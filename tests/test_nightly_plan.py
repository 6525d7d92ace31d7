"""Only the best candidate is ever published, only when it beats the base, and every refusal has a reason."""

import time
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oral_ray.bases.catalog import BaseRecord
from oral_ray.bases.spec import build_spec
from oral_ray.config import LoraSettings
from oral_ray.generation.refusal import refuse_base
from oral_ray.modalities import ACCURACY, Metric
from oral_ray.nightly.plan import decide, plan_releases

ARMS = ("generated", "reuse_new", "reuse_old")
FIGURES = st.integers(0, 20).map(lambda hits: hits / 20)  # few values, so that ties are common
SCORES = st.dictionaries(st.sampled_from(ARMS), FIGURES).flatmap(
    lambda scores: FIGURES.map(lambda base: scores | {"base": base})
)


@given(SCORES, st.permutations(ARMS), FIGURES)
def test_what_is_published_has_the_highest_score_and_beats_base_by_the_gain(
    scores: dict[str, float], candidates: list[str], min_gain: float
):
    arm = decide(scores, candidates, min_gain, ACCURACY).arm
    present = [name for name in candidates if name in scores]
    best = max((scores[name] for name in present), default=-1.0)
    if best <= scores["base"] + min_gain:
        assert arm is None
    else:
        assert arm == next(name for name in present if scores[name] == best)


@given(SCORES)
def test_a_generated_adapter_worse_than_reuse_is_never_published(scores: dict[str, float]):
    if decide(scores, ARMS, 0.0, ACCURACY).arm == "generated":
        assert all(scores["generated"] >= scores[arm] for arm in ARMS if arm in scores)


def test_the_better_of_two_candidates_wins_wherever_it_stands():
    scores = {"generated": 0.8, "reuse_new": 0.9, "base": 0.5}
    assert decide(scores, ("generated", "reuse_new"), 0.0, ACCURACY).arm == "reuse_new"
    assert decide(scores | {"generated": 0.95}, ("reuse_new", "generated"), 0.0, ACCURACY).arm == "generated"


def test_the_earlier_candidate_wins_a_tie():
    scores = {"generated": 0.8, "reuse_new": 0.8, "base": 0.5}
    assert decide(scores, ("generated", "reuse_new"), 0.0, ACCURACY).arm == "generated"
    assert decide(scores, ("reuse_new", "generated"), 0.0, ACCURACY).arm == "reuse_new"


def test_only_named_candidates_count():
    assert decide({"generated": 0.8, "trained": 0.9, "base": 0.5}, ARMS, 0.0, ACCURACY).arm == "generated"


@pytest.mark.parametrize(("score", "min_gain"), [(0.5, 0.0), (0.4, 0.0), (0.55, 0.1), (0.75, 0.25)])
def test_nothing_is_published_where_nothing_beats_the_base(score: float, min_gain: float):
    decision = decide({"generated": score, "base": 0.5}, ARMS, min_gain, ACCURACY)
    assert decision.arm is None
    assert decision.reason == f"no candidate beats base by more than {min_gain}: generated {score:.4f}, base 0.5000"


def test_where_lower_is_better_the_smallest_figure_is_published_and_only_below_the_base_by_the_gain():
    error = Metric("error", higher_is_better=False)
    scores = {"generated": 2.0, "reuse_new": 1.5, "reuse_old": 3.0, "base": 2.5}
    decision = decide(scores, ARMS, 0.5, error)
    assert decision.arm == "reuse_new"
    assert decision.reason.startswith(
        "best on validation in error (lower is better): generated 2.0000, reuse_new 1.5000"
    )
    refused = decide(scores, ARMS, 1.0, error)
    assert refused.arm is None
    assert refused.reason.startswith("no candidate beats base by more than 1.0 in error (lower is better): generated ")
    assert decide(scores | {"generated": 1.5}, ARMS, 0.0, error).arm == "generated", "the earlier one in a tie"
    assert decide(scores | {"base": float("nan")}, ARMS, 0.0, error).arm is None


def test_nothing_is_published_where_there_is_no_candidate():
    decision = decide({"trained": 0.9, "base": 0.5}, ARMS, 0.0, ACCURACY)
    assert (decision.arm, decision.reason) == (None, "no candidate could be made")


def test_a_candidate_without_a_finite_score_is_never_published():
    assert decide({"generated": float("nan"), "base": 0.5}, ARMS, 0.0, ACCURACY).arm is None
    scores = {"generated": float("nan"), "reuse_new": 0.8, "base": 0.5}
    assert decide(scores, ARMS, 0.0, ACCURACY).arm == decide(scores, ARMS[::-1], 0.0, ACCURACY).arm == "reuse_new", (
        "and hides no other"
    )


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
    wanted = [
        (base, task, "generate", "not released yet: new base version, served name, generator or task")
        for base in ("v1", "v2")
        for task in ("t1", "t2")
    ]
    assert plan(llama("v1"), llama("v2")) == wanted


def test_what_is_released_for_the_same_content_is_skipped():
    released = {("v1", "fingerprint-of-v1", "t2"), ("v2", "fingerprint-of-v1", "t1"), ("v1", "v1", "t1")}
    items = plan(llama("v1"), llama("v2"), released=released)
    assert [item[2] for item in items] == ["generate", "skip", "generate", "generate"]
    assert items[1] == ("v1", "t2", "skip", "already released")


def test_an_architecture_the_generator_has_not_seen_is_skipped_with_its_digest():
    other = llama("v2", hidden=32)
    items = plan(llama("v1"), other)
    assert [item[2] for item in items] == ["generate", "generate", "skip", "skip"]
    assert items[2][3] == f"the generator has not seen architecture {other.spec.digest[:12]} (llama)"


def test_a_rank_that_no_module_can_use_is_skipped_with_the_largest_that_one_can():
    items = plan(llama("v1"), r=17)
    assert [item[2] for item in items] == ["skip", "skip"]
    assert items[0][3] == "rank r=17 is larger than every target module allows (16); lower lora.r"
    assert [item[2] for item in plan(llama("v1"), r=16)] == ["generate", "generate"]  # v has 2 x 4 outputs, q has 16


FAMILY_CONFIGS = {
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mistral": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "qwen2": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "gemma": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 1,
    },
    "bert": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
}  # fmt: skip
SPECS = [
    build_spec({"model_type": name, **config, "num_hidden_layers": config.get("num_hidden_layers", 1) + more}, {}, "x")
    for name, config in FAMILY_CONFIGS.items()
    for more in (0, 1)
]


@st.composite
def nights(draw: st.DrawFn):
    """What may lie in a store: bases of several families, some of them released, and what the generator can do."""
    bases = [
        BaseRecord(id=f"b{i}", uri="u", spec=draw(st.sampled_from(SPECS)), fingerprint=draw(st.sampled_from("fgh")))
        for i in range(draw(st.integers(0, 6)))
    ]
    tasks = draw(st.lists(st.sampled_from(["t1", "t2", "t3"]), unique=True))
    known = {spec.digest for spec in draw(st.lists(st.sampled_from(SPECS)))}
    pairs = st.tuples(st.sampled_from(["b0", "b1", "b2", "b3"]), st.sampled_from("fgh"), st.sampled_from(["t1", "t2"]))
    targets = draw(st.sampled_from([("q", "v"), ("qkv",), ("up",), ("nonsense",)]))
    lora = LoraSettings(r=draw(st.sampled_from([1, 8, 9, 100])), target_modules=targets)
    return bases, tasks, known, lora, draw(st.sets(pairs))


@given(nights())
def test_every_complete_unreleased_pair_is_generated_or_has_a_reason(night):
    bases, tasks, known, lora, released = night
    items = plan_releases(bases, tasks, known, lora, released)
    assert [(item.base, item.task) for item in items] == [(base.id, task) for base in bases for task in tasks]
    by_id = {base.id: base for base in bases}
    for item in items:
        base = by_id[item.base]
        done, refusal = (base.id, base.fingerprint, item.task) in released, refuse_base(base, known, lora)
        assert item.reason
        assert (item.action == "generate") == (not done and not refusal)
        assert item.reason == (
            "already released"
            if done
            else refusal or "not released yet: new base version, served name, generator or task"
        )


@given(nights())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(night):
    bases, tasks, known, lora, released = night
    by_id = {base.id: base for base in bases}
    first = plan_releases(bases, tasks, known, lora, released)
    made = {(i.base, by_id[i.base].fingerprint, i.task) for i in first if i.action == "generate"}
    assert all(item.action == "skip" for item in plan_releases(bases, tasks, known, lora, released | made))


def test_a_thousand_bases_with_twenty_tasks_are_planned_in_seconds_and_little_memory():
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    }  # fmt: skip
    kinds = [build_spec(config | {"num_hidden_layers": 28 + i}, {}, "x") for i in range(5)]
    bases = [BaseRecord(id=f"b{i}", uri="u", spec=kinds[i % 5], fingerprint=f"f{i}") for i in range(1000)]
    tasks = [f"t{i}" for i in range(20)]
    released = {(f"b{i}", f"f{i}", task) for i in range(0, 1000, 2) for task in tasks}
    tracemalloc.start()
    started = time.process_time()
    items = plan_releases(bases, tasks, {kind.digest for kind in kinds[:4]}, LoraSettings(r=8), released)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Counter(item.action for item in items) == {"generate": 8_000, "skip": 12_000}
    assert seconds < 5.0
    assert peak < 500e6
