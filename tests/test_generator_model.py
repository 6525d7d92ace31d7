"""The network and its checkpoint: strict, exact, one network for many kinds of adapter, every adapter on its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factory_fixtures import layout_of, randn, shaken_network, small_spec, stats_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import positions, token_mask
from oral_ray.config import DiffusionObjective, RegressionObjective, SamplingConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator import diffusion
from oral_ray.generator.condition import fit_probe_stats
from oral_ray.generator.data import Batch
from oral_ray.generator.functional import FunctionalItem
from oral_ray.generator.model import (
    DESCRIPTION,
    WEIGHTS,
    Generator,
    build_network,
    load_generator,
    save_generator,
)
from oral_ray.generator.network import Network

OBJECTIVES = (
    DiffusionObjective(),
    DiffusionObjective(prediction="eps", schedule="linear"),
    DiffusionObjective(prediction="x0"),
    RegressionObjective(),
)


@pytest.fixture
def layouts(tiny_bert: Path, tiny_llama: Path) -> list[AdapterLayout]:
    """Two architectures, ranks 2 and 4, two target sets, token size that divides nothing."""
    return [
        layout_of(tiny_bert, 2, ("q", "v")),
        layout_of(tiny_llama, 4, ("q", "v", "up")),
        layout_of(tiny_llama, 2, ("q", "v")),
        layout_of(tiny_bert, 4, ("q", "v", "up")),
    ]


def conditions(num: int) -> tuple[Tensor, Tensor]:
    return randn(num, 12, seed=21), randn(num, 10, seed=22)


def padded(rows_LX: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows_LX, (0, 0, 0, length - len(rows_LX)))


def batch_of(layouts: list[AdapterLayout]) -> tuple[Tensor, Tensor]:
    longest = max(layout.num_tokens for layout in layouts)
    return (
        torch.stack([padded(positions(layout), longest) for layout in layouts]),
        torch.stack([padded(token_mask(layout), longest) for layout in layouts]),
    )


def noise_of(mask_BLD: Tensor, first: int = 0) -> Callable[[], Tensor]:
    """Adapter i draws from stream `first` + i, whatever the padding."""
    rngs = [torch.Generator().manual_seed(first + i) for i in range(len(mask_BLD))]
    lengths = mask_BLD.any(-1).sum(1).tolist()

    def draw() -> Tensor:
        rows = [
            torch.randn(length, mask_BLD.shape[-1], generator=rng) for length, rng in zip(lengths, rngs, strict=True)
        ]
        return torch.stack([padded(row, mask_BLD.shape[1]) for row in rows])

    return draw


def sample(network: Network, layouts: list[AdapterLayout], first: int = 0, **sampling: object) -> list[Tensor]:
    position_BLP, mask_BLD = batch_of(layouts)
    text, model = conditions(8)
    chosen = slice(first, first + len(layouts))
    found = network.sample(
        position_BLP, mask_BLD, text[chosen], model[chosen], noise_of(mask_BLD, first),
        SamplingConfig(**{"num_steps": 3, **sampling}),
    )  # fmt: skip
    assert not found[~mask_BLD].any()
    return [found[i, : layout.num_tokens] for i, layout in enumerate(layouts)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_network_serves_architectures_ranks_and_target_sets_alone_and_together(
    layouts: list[AdapterLayout], objective: DiffusionObjective | RegressionObjective
) -> None:
    network = shaken_network(small_spec(objective=objective))
    together = sample(network, layouts)
    assert [tuple(tokens.shape) for tokens in together] == [(layout.num_tokens, 24) for layout in layouts]
    assert len({layout.num_tokens for layout in layouts}) > 2
    for i, layout in enumerate(layouts):
        alone = sample(network, [layout], first=i)[0]
        assert alone.abs().max() > 1e-2
        assert torch.allclose(alone, together[i], atol=1e-5 * max(1.0, float(alone.abs().max())))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_every_sampler_gives_an_adapter_the_same_alone_and_in_a_batch(
    layouts: list[AdapterLayout], sampler: str
) -> None:
    network = shaken_network(small_spec())
    together = sample(network, layouts, sampler=sampler, guidance_text=1.5)
    for i, layout in enumerate(layouts):
        alone = sample(network, [layout], first=i, sampler=sampler, guidance_text=1.5)[0]
        assert torch.allclose(alone, together[i], atol=1e-5 * max(1.0, float(alone.abs().max())))


def test_prompt_base_position_and_noise_all_change_a_sample(tiny_bert: Path, tiny_llama: Path) -> None:
    network = shaken_network(small_spec())
    position, mask = batch_of([layout_of(tiny_bert)])
    text, model = conditions(2)

    def draw(text_E: Tensor, model_G: Tensor, position_BLP: Tensor = position, stream: int = 0) -> Tensor:
        return network.sample(
            position_BLP, mask, text_E[None], model_G[None], noise_of(mask, stream), SamplingConfig(num_steps=2)
        )

    first = draw(text[0], model[0])
    assert torch.equal(first, draw(text[0], model[0]))
    for other in (
        draw(text[1], model[0]),
        draw(text[0], model[1]),
        draw(text[0], model[0], position.flip(1)),
        draw(text[0], model[0], stream=5),
    ):
        assert (first - other).abs().max() > 1e-3


def count_calls(network: Network, layouts: list[AdapterLayout], **sampling: object) -> tuple[int, int]:
    """Calls of (the denoiser, the first recurrent layer)."""
    counts = [0, 0]

    def counter(i: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            counts[i] += 1

        return count

    handles = [m.register_forward_hook(counter(i)) for i, m in enumerate((network.denoiser, network.layers[0]))]
    sample(network, layouts, **sampling)
    for handle in handles:
        handle.remove()
    return counts[0], counts[1]


@pytest.mark.parametrize(("text", "model", "branches"), [(1, 1, 1), (2, 1, 2), (2, 2, 2), (3, 2, 3), (0, 1, 1)])
def test_guidance_costs_one_branch_for_each_weight_that_is_not_zero(
    layouts: list[AdapterLayout], text: float, model: float, branches: int
) -> None:
    network = shaken_network(small_spec())
    found = count_calls(network, layouts[:2], num_steps=4, guidance_text=text, guidance_model=model)
    assert found == (4 * branches, branches)


def test_guidance_above_one_changes_the_sample_and_zero_forgets_the_prompt(layouts: list[AdapterLayout]) -> None:
    network = shaken_network(small_spec())
    plain = sample(network, layouts[:1])[0]
    assert (plain - sample(network, layouts[:1], guidance_text=2.0)[0]).abs().max() > 1e-3
    assert (plain - sample(network, layouts[:1], guidance_model=2.0)[0]).abs().max() > 1e-3
    position, mask = batch_of(layouts[:1])
    text, model = conditions(2)
    no_text = SamplingConfig(num_steps=2, guidance_text=0.0)
    first, second = (network.sample(position, mask, t[None], model[:1], noise_of(mask), no_text) for t in text)
    assert torch.equal(first, second)


def test_guidance_is_the_weighted_sum_of_its_branches(layouts: list[AdapterLayout]) -> None:
    network = shaken_network(small_spec(objective=RegressionObjective()))
    position, mask = batch_of(layouts[:1])
    text, model = (rows[:1] for rows in conditions(1))
    yes, no = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)

    def branch(use_text: Tensor, use_model: Tensor) -> Tensor:
        return network.regress(network.prototypes(position, text, model, use_text, use_model)[0], 24) * mask

    none, base, both = branch(no, no), branch(no, yes), branch(yes, yes)
    wanted = none + 2.0 * (base - none) + 3.0 * (both - base)
    sampling = SamplingConfig(guidance_text=3.0, guidance_model=2.0)
    found = network.sample(position, mask, text, model, noise_of(mask), sampling)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_one_step_estimate_is_sampling_with_one_step(
    layouts: list[AdapterLayout], objective: DiffusionObjective | RegressionObjective, sampler: str
) -> None:
    network = shaken_network(small_spec(objective=objective))
    position, mask = batch_of(layouts[1:2])
    text, model = (rows[:1] for rows in conditions(1))
    item = FunctionalItem(position, mask, text, model, noise_of(mask)(), lambda tokens: tokens.sum())
    found = network.one_step(item)
    wanted = network.sample(position, mask, text, model, noise_of(mask), SamplingConfig(num_steps=1, sampler=sampler))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5) and not found[~mask].any()
    found.square().sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("no_"))


def loss_inputs(layouts: list[AdapterLayout]) -> Batch:
    position, mask = batch_of(layouts)
    num = len(layouts)
    text, model = conditions(num)
    return Batch(
        x0_BLD=randn(*mask.shape, seed=1) * mask,
        mask_BLD=mask,
        position_BLP=position,
        text_BE=text,
        model_BG=model,
        use_text_B=torch.ones(num, dtype=torch.bool),
        use_model_B=torch.ones(num, dtype=torch.bool),
        noise_BLD=randn(*mask.shape, seed=2),
        time_B=torch.linspace(0.2, 0.9, num),
        before_BNWP=torch.zeros(num, 0, 0, position.shape[-1]),
        num_before_B=torch.zeros(num, dtype=torch.long),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_stands_in_padding_changes_no_loss(
    layouts: list[AdapterLayout], objective: DiffusionObjective | RegressionObjective
) -> None:
    network, inputs = shaken_network(small_spec(objective=objective)), loss_inputs(layouts)
    mask = inputs.mask_BLD
    dirt = 50.0 * randn(*mask.shape, seed=3)
    dirty = replace(
        inputs,
        x0_BLD=torch.where(mask, inputs.x0_BLD, dirt),
        noise_BLD=torch.where(mask, inputs.noise_BLD, dirt),
    )
    clean_loss = network(inputs)
    assert torch.allclose(clean_loss, network(dirty), rtol=1e-6)
    assert not torch.allclose(clean_loss, network(replace(inputs, x0_BLD=inputs.x0_BLD + 1.0)), rtol=1e-3)


def test_loss_of_a_padded_batch_is_the_mean_of_the_losses_alone(layouts: list[AdapterLayout]) -> None:
    network, inputs = shaken_network(small_spec()), loss_inputs(layouts)
    alone = []
    for i, layout in enumerate(layouts):
        own, length = inputs.parts(len(layouts))[i], layout.num_tokens
        cut = replace(
            own,
            x0_BLD=own.x0_BLD[:, :length],
            mask_BLD=own.mask_BLD[:, :length],
            position_BLP=own.position_BLP[:, :length],
            noise_BLD=own.noise_BLD[:, :length],
        )
        alone.append(float(network(cut).detach()))
    assert float(network(inputs).detach()) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_a_perfect_network_has_no_loss(layouts: list[AdapterLayout], monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = shaken_network(small_spec()), loss_inputs(layouts)
    v = diffusion.target(inputs.x0_BLD, inputs.noise_BLD, inputs.time_B, "cosine", "v")
    monkeypatch.setattr(network.denoiser, "forward", lambda *_: v)
    assert float(network(inputs)) == 0.0


def test_dropped_halves_of_the_condition_are_replaced_by_the_learnt_null(layouts: list[AdapterLayout]) -> None:
    network, inputs = shaken_network(small_spec()), loss_inputs(layouts[:2])
    for half, use in (("text_BE", "use_text_B"), ("model_BG", "use_model_B")):
        dropped = replace(inputs, **{use: torch.zeros(2, dtype=torch.bool)})
        other = replace(dropped, **{half: getattr(inputs, half) + 9.0})
        assert torch.equal(network(dropped), network(other))
        assert not torch.equal(network(dropped), network(inputs))


def test_prototypes_of_a_cut_sequence_are_those_of_the_whole(layouts: list[AdapterLayout]) -> None:
    network = shaken_network(small_spec())
    position, _ = batch_of(layouts[1:2])
    text, model = (rows[:1] for rows in conditions(1))
    yes = torch.ones(1, dtype=torch.bool)
    whole, _ = network.prototypes(position, text, model, yes, yes)
    first, states = network.prototypes(position[:, :11], text, model, yes, yes)
    second, _ = network.prototypes(position[:, 11:], text, model, yes, yes, states)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)


@pytest.mark.parametrize("recurrent", [True, False])
def test_tokens_see_earlier_tokens_only_through_recurrence(layouts: list[AdapterLayout], recurrent: bool) -> None:
    network = shaken_network(small_spec(recurrent=recurrent))
    position, _ = batch_of(layouts[:1])
    text, model = (rows[:1] for rows in conditions(1))
    yes = torch.ones(1, dtype=torch.bool)
    other = position.clone()
    other[:, 0] += 1.0
    before, after = (network.prototypes(p, text, model, yes, yes)[0] for p in (position, other))
    assert torch.equal(before[:, 5:], after[:, 5:]) != recurrent


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_network(small_spec(), 3).state_dict()
    state = torch.get_rng_state()
    second, third = build_network(small_spec(), 3).state_dict(), build_network(small_spec(), 4).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["position_in.weight"], third["position_in.weight"])


@pytest.fixture
def generator(layouts: list[AdapterLayout]) -> Generator:
    spec = small_spec()
    probes = [("arch", {"m": randn(3, 3, seed=i)}) for i in range(3)] + [("lonely", {"m": randn(2, 2)})]
    return Generator(spec, shaken_network(spec), stats_of(*layouts[:2]), fit_probe_stats(probes, 2))


def test_a_saved_generator_is_loaded_exactly(
    generator: Generator, layouts: list[AdapterLayout], tmp_path: Path
) -> None:
    save_generator(generator, tmp_path)
    back = load_generator(tmp_path)
    assert back.spec == generator.spec
    wanted, found = generator.network.state_dict(), back.network.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert back.token_stats.scales == generator.token_stats.scales
    for mine, other in (
        (generator.token_stats.means, back.token_stats.means),
        (generator.probe_stats.mean, back.probe_stats.mean),
        (generator.probe_stats.axes, back.probe_stats.axes),
        (generator.probe_stats.spread, back.probe_stats.spread),
    ):
        assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)
    assert torch.equal(sample(back.network, layouts)[0], sample(generator.network, layouts)[0])
    assert not back.network.training


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a missing weight": lambda t: t.pop("network.norm.weight"),
    "an extra weight": lambda t: t.update({"network.extra": torch.zeros(1)}),
    "a weight of another shape": lambda t: t.update({"network.norm.weight": torch.zeros(3)}),
    "a tensor of no known part": lambda t: t.update({"junk": torch.zeros(1)}),
    "probe axes without their mean": lambda t: t.pop("probe.mean.arch"),
    "a probe mean without its axes": lambda t: t.pop("probe.axes.arch"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_with_other_tensors_is_refused(generator: Generator, tmp_path: Path, change: str) -> None:
    save_generator(generator, tmp_path)
    with pytest.raises(GeneratorError, match=str(tmp_path)):
        load_generator(rewritten(tmp_path, CHANGES[change]))


def test_a_checkpoint_of_another_spec_is_refused(generator: Generator, tmp_path: Path) -> None:
    save_generator(generator, tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    description["spec"]["generator"]["num_layers"] = 3
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(GeneratorError, match="does not fit its own description"):
        load_generator(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", '{"spec": {}}', '{"scales": []}'])
def test_a_damaged_description_is_refused(generator: Generator, tmp_path: Path, damage: str) -> None:
    save_generator(generator, tmp_path)
    (tmp_path / DESCRIPTION).write_text(damage)
    with pytest.raises(GeneratorError, match="damaged"):
        load_generator(tmp_path)


def test_an_unknown_key_of_the_description_is_refused_by_name(generator: Generator, tmp_path: Path) -> None:
    save_generator(generator, tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    description["spec"]["generator"]["wdith"] = 3
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(GeneratorError, match="wdith"):
        load_generator(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(generator: Generator, tmp_path: Path, name: str) -> None:
    save_generator(generator, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(GeneratorError, match=f"{name} is missing"):
        load_generator(tmp_path)


def test_half_a_weights_file_is_refused(generator: Generator, tmp_path: Path) -> None:
    save_generator(generator, tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(GeneratorError, match="damaged"):
        load_generator(tmp_path)
