"""`oral-ray bench generate` on the smallest layout, and RPG's head behind the denoiser's interface."""

from pathlib import Path

import pytest
import torch
from dev.bench import floors, peers
from factory_fixtures import randn, small_spec

from oral_ray.bench import generate
from oral_ray.config import ConditionConfig, ConvDenoiserConfig, build_section
from oral_ray.generator.conv_denoiser import ConvDenoiser
from oral_ray.generator.denoiser import Denoiser
from oral_ray.generator.model import build_network


def test_the_benchmark_times_a_layout_and_lists_one_that_is_too_large(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generate, "ConditionConfig", lambda: ConditionConfig(text_encoder=str(tiny_bert)))
    options = build_section(
        generate.Options,
        ['models=["bert-base"]', "ranks=[4,2,8]", "max_parameters=300000", "token_dim=256"],
    )
    result = generate.run(options)
    assert [row["what"] for row in result.rows] == [
        f"bert-base {targets} r={r}" for targets in ("q,v", "all-linear") for r in (4, 2, 8)
    ]
    first, second, third, *others = result.rows
    assert (first["parameters"], first["tokens"], first["slots"]) == (147_456, 576, 48)
    assert float(first["seconds"] or 0) > 0
    assert float(second["seconds"] or 0) > 0
    assert float(third["seconds"] or 0) > 0
    assert not any("seconds" in row for row in others)
    assert [fit.what for fit in result.exponents] == ["seconds of parameters", "peak memory of parameters"]


def test_heads_are_timed_for_one_parameter_each_and_floors_stand_beside_ours(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peers, "ConditionConfig", lambda: ConditionConfig(text_encoder=str(tiny_bert)))
    monkeypatch.setattr(floors, "_matmul_flops", lambda device, dtype: 1e11)
    monkeypatch.setattr(floors, "_copy_bytes", lambda device: 1e10)
    monkeypatch.setattr(peers, "OUR_TOKENS", 2)
    monkeypatch.setattr(peers, "RPG_TOKENS", 2)
    result = peers.run(build_section(peers.Options, ["token_dim=256", "rpg_steps=3", "repetitions=1"]))
    assert [row["steps"] for row in result.rows] == [2, 1, 2, 3]
    assert all(float(row["ns_per_parameter"] or 0) > 0 for row in result.rows)
    assert len({row["generator_parameters"] for row in result.rows}) == 2  # ours and RPG's
    assert {"matmul float32", "copy"} <= {row["what"] for row in result.floors}
    assert all(float(row["factor"] or 0) > 0 for row in result.floors if "factor" in row)


def test_the_convolutional_head_sees_its_token_its_prototype_and_the_time_and_no_other_token():
    head = ConvDenoiser(token_dim=24, channels=(8, 12, 8), prototype_width=32)
    noisy, prototypes, time = randn(2, 5, 24), randn(2, 5, 32, seed=1), torch.tensor([0.2, 0.7])
    out = head(noisy, prototypes, time)
    assert out.shape == noisy.shape
    changed = noisy.clone()
    changed[0, 2] += 1
    moved = (head(changed, prototypes, time) - out).abs().amax(-1)
    assert moved[0, 2] > 1e-4
    moved[0, 2] = 0
    assert moved.max() < 1e-6
    assert not torch.allclose(head(noisy, prototypes + 1, time), out)
    assert not torch.allclose(head(noisy, prototypes, time * 0.5), out)


def test_the_head_is_chosen_by_configuration():
    assert isinstance(build_network(small_spec(), 0).denoiser, Denoiser)
    assert isinstance(build_network(small_spec(denoiser=ConvDenoiserConfig(channels=(4,))), 0).denoiser, ConvDenoiser)
