"""The functional phase: a generated adapter on a frozen virtual base, with gradients into its tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factory_fixtures import ALL_ROLES, base_of, layout_of, randn, random_artifact, random_factors, stats_of, toy_task
from torch import Tensor

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import attached, initial_factors, train_adapter
from oral_ray.adapters.tokens import token_mask, tokenize
from oral_ray.bases import states
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.bases.probes import weight_probes
from oral_ray.config import CorpusConfig, FunctionalPhase, LoraSettings, VersionPool
from oral_ray.errors import GeneratorError
from oral_ray.generator import functional
from oral_ray.generator.data import CorpusTables
from oral_ray.generator.functional import (
    FunctionalItems,
    FunctionalSource,
    VirtualBase,
    applied,
    draw_mix,
    train_static,
)
from oral_ray.modalities import causal, modality_of
from oral_ray.modalities.text import encode
from oral_ray.objects import FileObjects

TEXTS = ["red dog runs", "big tree", "the cat is an animal of the house"]


@pytest.fixture(params=("tiny_bert", "tiny_llama"))
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def outputs(model, base: LoadedBase) -> Tensor:
    batch = encode(base.tokenizer, TEXTS)
    result = model(**batch)
    values = result.logits if base.record.spec.kind == "causal" else result.last_hidden_state
    return values[batch["attention_mask"].bool()]


@torch.no_grad()
def test_an_applied_adapter_gives_what_peft_gives(folder: Path) -> None:
    base, layout = base_of(folder), layout_of(folder, 4, ALL_ROLES)
    bare = outputs(base.model, base)
    with attached(base, random_artifact(layout)) as model:
        wanted = outputs(model, base)
    with applied(base.model, random_factors(layout, 0), layout):
        found = outputs(base.model, base)
    assert torch.allclose(found, wanted, atol=1e-4) and (found - bare).abs().max() > 1e-2
    assert torch.equal(outputs(base.model, base), bare)


def test_an_applied_adapter_is_gone_after_an_error(folder: Path) -> None:
    base, layout = base_of(folder), layout_of(folder)
    bare = outputs(base.model, base)
    with pytest.raises(RuntimeError, match="body"), applied(base.model, random_factors(layout, 0), layout):
        raise RuntimeError("body")
    assert torch.equal(outputs(base.model, base), bare)


@torch.no_grad()
def test_applied_to_transposed_weights_gives_what_peft_gives() -> None:
    from peft import LoraConfig, PeftModel
    from transformers import GPT2Config, GPT2LMHeadModel

    from oral_ray.bases.spec import build_spec

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    settings = LoraSettings(r=2, target_modules=("qkv", "o", "up", "down"))
    layout = AdapterLayout.of(build_spec(config.to_dict(), {}, "nowhere"), settings, 24)
    factors, ids = random_factors(layout, 0), torch.arange(10)[None]
    with applied(model, factors, layout):
        found = model(ids).logits
    peft = PeftModel(
        model, LoraConfig(r=2, lora_alpha=8, target_modules=list(layout.target_modules), fan_in_fan_out=True)
    ).eval()
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            module = name.removeprefix("base_model.model.").partition(".lora_")[0]
            parameter.copy_(factors[module]["lora_B" in name])
    assert torch.allclose(found, peft(ids).logits, atol=1e-4)
    assert (found - peft.unload()(ids).logits).abs().max() > 1e-2


@pytest.fixture
def versions(folder: Path) -> list[LoadedBase]:
    return versions_of(folder)


def versions_of(folder: Path) -> list[LoadedBase]:
    """Three versions in memory, loaded anew, since a virtual base takes the place of the last."""
    bases = [open_base(str(folder)) for _ in range(3)]
    with torch.no_grad():
        for i, base in enumerate(bases):
            for j, (name, parameter) in enumerate(base.model.named_parameters()):
                if "embed" not in name:
                    parameter.add_(0.05 * i * randn(*parameter.shape, seed=j + 100 * i))
    return bases


@torch.no_grad()
def test_a_mix_of_one_version_is_that_version(versions: list[LoadedBase]) -> None:
    wanted = [outputs(base.model, base) for base in versions]
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2 and (wanted[1] - wanted[2]).abs().max() > 1e-2
    virtual = VirtualBase(versions)
    for i in (0, 1, 2, 0):
        base = virtual.set([float(i == j) for j in range(3)])
        assert torch.allclose(outputs(base.model, base), wanted[i], atol=1e-5)


@torch.no_grad()
def test_a_mix_mixes_every_weight_and_leaves_the_older_versions_alone(versions: list[LoadedBase]) -> None:
    kept = [{name: p.clone() for name, p in base.model.named_parameters()} for base in versions]
    mixed = dict(VirtualBase(versions).set([0.5, -0.25, 0.75]).model.named_parameters())
    for name, parameter in mixed.items():
        wanted = 0.5 * kept[0][name] - 0.25 * kept[1][name] + 0.75 * kept[2][name]
        assert torch.allclose(parameter, wanted, atol=1e-6), name
    for base, before in zip(versions[:2], kept[:2], strict=True):
        assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def source_of(
    folder: Path,
    versions: list[LoadedBase],
    tmp_path: Path,
    seen: list[dict[str, Tensor]] | None = None,
    further: Sequence[str] = (),
    **phase: Any,
) -> tuple[FunctionalItems, list[dict[str, Tensor]]]:
    """A source over saved versions; the probes that it asks to encode are collected in `seen`."""
    layout, probes = layout_of(folder), []
    for i, base in enumerate(versions):
        base.model.save_pretrained(tmp_path / str(i))
        probes.append(weight_probes(FileObjects(tmp_path / str(i)), "", base.record.spec, ("q", "v"), 4))

    def encode_base(mixed) -> Tensor:
        if seen is not None:
            seen.append(dict(mixed))
        return torch.cat([mixed[name].flatten() for name in sorted(mixed)])

    prompts = {task_id: randn(2, 12, seed=1) for task_id in ("toy", "other")}
    prompts |= {task_id: randn(2, 12, seed=2) for task_id in further}
    tables = CorpusTables({layout.digest: layout}, prompts, {}, stats_of(layout))
    tasks = [toy_task("toy"), toy_task("other")]
    settings = FunctionalPhase(num_examples=8, **phase)
    lines, others = [list(range(len(versions)))], [toy_task(task_id) for task_id in further]
    source = FunctionalSource(versions, lines, tasks, others, [layout], settings)
    return FunctionalItems(source, probes, tables, encode_base), probes


def test_probes_of_a_virtual_base_are_those_of_its_weights(
    folder: Path, versions: list[LoadedBase], tmp_path: Path
) -> None:
    seen: list[dict[str, Tensor]] = []
    source, probes = source_of(folder, versions, tmp_path, seen)
    for seed in range(3):
        source.item(seed)
        versions[-1].model.save_pretrained(tmp_path / "mixed")  # the virtual base is in the place of the last
        wanted = weight_probes(FileObjects(tmp_path / "mixed"), "", versions[-1].record.spec, ("q", "v"), 4)
        assert wanted.keys() == seen[-1].keys()
        assert all(torch.allclose(wanted[name], seen[-1][name], atol=1e-4) for name in wanted)
        assert not any(torch.allclose(wanted[name], version[name], atol=1e-4) for version in probes for name in wanted)


def test_gradient_flows_into_every_value_and_no_padding(
    folder: Path, versions: list[LoadedBase], tmp_path: Path
) -> None:
    source, _ = source_of(folder, versions, tmp_path)
    item, layout = source.item(0), layout_of(folder)
    tokens = randn(1, layout.num_tokens, 24, seed=3).requires_grad_()
    loss = item.task_loss(tokens)
    loss.backward()
    assert loss.ndim == 0 and torch.isfinite(loss)
    assert not tokens.grad[0][~token_mask(layout)].any()
    assert (tokens.grad[0][token_mask(layout)] != 0).float().mean() > 0.95
    assert all(parameter.grad is None for base in versions for parameter in base.model.parameters())


def test_following_the_gradient_lowers_the_task_loss(folder: Path, versions: list[LoadedBase], tmp_path: Path) -> None:
    source, _ = source_of(folder, versions, tmp_path)
    item, layout = source.item(1), layout_of(folder)
    tokens = randn(1, layout.num_tokens, 24, seed=3).requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=0.1)
    losses = []
    for _ in range(15):
        loss = item.task_loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@torch.no_grad()
def test_task_loss_is_that_of_the_adapter_the_tokens_stand_for(
    folder: Path, versions: list[LoadedBase], tmp_path: Path
) -> None:
    source, _ = source_of(folder, versions[:1], tmp_path)
    layout, base, task = layout_of(folder), versions[0], toy_task()
    factors = random_factors(layout, 5)
    tokens = stats_of(layout).normalize(tokenize(factors, layout).tokens_LD, layout)
    found = float(source.item(4).task_loss(tokens[None]))
    rng = torch.Generator().manual_seed(4)
    torch.randint(2, (), generator=rng)  # the task
    chosen = [task.examples("train")[i] for i in torch.randint(64, (8,), generator=rng).tolist()]
    reader = modality_of(base.record.spec.kind).reader(base.model, base.tokenizer, task.labels)
    batch = reader.read(chosen)
    with attached(base, random_artifact(layout, seed=5)) as model:
        loss = reader.loss(model, batch)
    assert found == pytest.approx(float(loss), rel=1e-4)


def test_same_seed_draws_the_same_item_and_seeds_differ(
    folder: Path, versions: list[LoadedBase], tmp_path: Path
) -> None:
    source, _ = source_of(folder, versions, tmp_path)
    tokens = randn(1, layout_of(folder).num_tokens, 24)
    draws = []
    for seed in (0, 1, 0):
        torch.manual_seed(len(draws))  # the global stream must not matter
        item = source.item(seed)
        draws.append((item.model_BG, item.text_BE, item.noise_BLD, item.task_loss(tokens)))
    assert all(torch.equal(left, right) for left, right in zip(draws[0], draws[2], strict=True))
    assert not torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][2], draws[1][2])
    assert len({float(source.item(seed).text_BE[0, 0]) for seed in range(12)}) == 2


def test_versions_of_two_architectures_are_refused(tiny_bert: Path, tiny_llama: Path) -> None:
    bases = [base_of(tiny_bert), base_of(tiny_llama)]
    with pytest.raises(GeneratorError, match="one architecture"):
        FunctionalSource(bases, [[0, 1]], [], [], [layout_of(tiny_bert)], FunctionalPhase())


@pytest.mark.parametrize("num_versions", [1, 2, 3, 6])
def test_coefficients_of_a_mix_sum_to_one(num_versions: int) -> None:
    rng = torch.Generator().manual_seed(0)
    mixes = [draw_mix(num_versions, [range(num_versions)], 1.5, rng) for _ in range(200)]
    assert all(len(mix) == num_versions and sum(mix) == pytest.approx(1.0, abs=1e-5) for mix in mixes)
    if num_versions > 1:
        beyond = [mix for mix in mixes if min(mix) < 0]
        assert 60 < len(beyond) < 140
        assert all(1.0 < mix[-1] <= 2.5 and sum(c != 0 for c in mix) == 2 for mix in beyond)
        assert len({mix.index(min(mix)) for mix in beyond}) == num_versions - 1
    else:
        assert mixes[0] == [1.0]


def test_no_extrapolation_stays_within_the_versions() -> None:
    rng = torch.Generator().manual_seed(0)
    assert all(min(draw_mix(3, [[0, 1, 2]], 0.0, rng)) >= 0.0 for _ in range(50))


def test_extrapolation_goes_along_a_line_of_descent() -> None:
    rng = torch.Generator().manual_seed(0)
    beyond = [mix for mix in (draw_mix(5, [[0, 1, 2], [0, 3, 4]], 1.0, rng) for _ in range(400)) if min(mix) < 0]
    steps = {(mix.index(max(mix)), mix.index(min(mix))) for mix in beyond}
    assert steps == {(2, 0), (2, 1), (4, 0), (4, 3)}
    assert all(min(draw_mix(2, [[0], [1]], 1.0, rng)) >= 0.0 for _ in range(50))  # two versions of an unseen one


def test_items_of_one_base_seed_share_their_version(folder: Path, versions: list[LoadedBase], tmp_path: Path) -> None:
    source, _ = source_of(folder, versions, tmp_path)
    items = [source.item(seed, base_seed) for seed, base_seed in ((0, 7), (1, 7), (2, 8))]
    assert torch.equal(items[0].model_BG, items[1].model_BG) and not torch.equal(items[0].noise_BLD, items[1].noise_BLD)
    assert not torch.equal(items[1].model_BG, items[2].model_BG)


def test_several_tasks_of_a_step_give_the_mean_of_their_losses(
    folder: Path, versions: list[LoadedBase], tmp_path: Path
) -> None:
    source, _ = source_of(folder, versions, tmp_path, tasks_per_step=3)
    item, layout = source.item(5), layout_of(folder)
    assert item.text_BE.shape[0] == item.model_BG.shape[0] == item.position_BLP.shape[0] == len(item.noise_BLD) == 3
    assert not torch.equal(item.noise_BLD[0], item.noise_BLD[1])
    tokens = randn(3, layout.num_tokens, 24, seed=3).requires_grad_()
    item.task_loss(tokens).backward()
    assert all(grad.abs().sum() > 0 for grad in tokens.grad)
    moved = tokens.detach().clone()
    moved[1] += 1.0
    alone = [item.task_loss(tokens.detach()), item.task_loss(moved)]
    moved[0] += 1.0
    assert len({round(float(loss), 6) for loss in (*alone, item.task_loss(moved))}) == 3


@pytest.mark.parametrize(("further_frac", "some", "all_"), [(0.0, False, False), (0.5, True, False), (1.0, True, True)])
def test_further_tasks_are_drawn_as_often_as_asked(
    folder: Path, versions: list[LoadedBase], tmp_path: Path, further_frac: float, some: bool, all_: bool
) -> None:
    source, _ = source_of(folder, versions, tmp_path, further=["more"], further_frac=further_frac)
    wanted = {float(value) for value in randn(2, 12, seed=2)[:, 0]}
    drawn = [float(source.item(seed).text_BE[0, 0]) in wanted for seed in range(24)]
    assert (any(drawn), all(drawn)) == (some, all_)


def test_a_static_adapter_learns_what_its_source_draws(
    folder: Path, versions: list[LoadedBase], tmp_path: Path
) -> None:
    layout, lines = layout_of(folder), [list(range(len(versions)))]
    source = FunctionalSource(versions, lines, [toy_task()], [], [layout], FunctionalPhase(num_examples=16))
    start = initial_factors(layout, 0)

    @torch.no_grad()
    def loss(factors) -> float:
        return sum(float(source.draw(100 + seed).loss([factors])) for seed in range(8))

    before = loss(start)
    trained = train_static(source, start, 60, 5e-2, seed=0)
    again = train_static(source, start, 60, 5e-2, seed=0)
    assert loss(trained) < 0.85 * before, (loss(trained), before)
    assert loss(start) == before
    assert all(torch.equal(a, b) for name in trained for a, b in zip(trained[name], again[name], strict=True))


def test_draws_are_of_every_kind_of_adapter(folder: Path, versions: list[LoadedBase], tmp_path: Path) -> None:
    layouts = [layout_of(folder), layout_of(folder, r=1)]
    source = FunctionalSource(versions, [[0, 1, 2]], [toy_task()], [], layouts, FunctionalPhase(num_examples=2))
    assert {source.draw(seed).layout.lora.r for seed in range(12)} == {layout.lora.r for layout in layouts}


def test_initial_factors_are_what_training_starts_from(folder: Path) -> None:
    base, layout = base_of(folder), layout_of(folder)
    training = CorpusConfig(steps=1, keep_last=1, learning_rate=1e-30, batch_size=4)
    [artifact] = train_adapter([base], toy_task(), layout, training, seed=3)
    start = initial_factors(layout, training.init_seed)
    assert all(torch.allclose(a, start[name][0]) for name, (a, _) in artifact.factors(layout).items())
    assert not any(b.any() for _, b in start.values())


def pool(folder: Path, versions: list[LoadedBase], keep: Path, **phase: Any) -> FunctionalSource:
    """A source of a pool of three versions whose adapters begin at layer 1."""
    settings = LoraSettings(r=2, target_modules=("q", "v"), last_layers=1)
    layout = AdapterLayout.of(versions[0].record.spec, settings, 24)
    given = {"num_examples": 6, "pool": VersionPool(num_versions=3, num_examples=8), **phase}
    return FunctionalSource(versions, [[0, 1, 2]], [toy_task()], [], [layout], FunctionalPhase(**given), keep)


def test_versions_of_a_pool_come_again_with_examples_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    source = pool(tiny_llama, versions_of(tiny_llama), tmp_path)
    drawn = [source.draw(seed, 100 + seed) for seed in range(24)]
    assert 1 < len({tuple(draw.mix) for draw in drawn}) <= 3
    assert len(list(tmp_path.iterdir())) == len({tuple(draw.mix) for draw in drawn})
    assert all(draw.asked[0][1].first_layer == 1 for draw in drawn)
    other = pool(tiny_llama, versions_of(tiny_llama), tmp_path, extrapolation=0.5)
    assert {tuple(other.draw(seed, 100 + seed).mix) for seed in range(24)} != {tuple(draw.mix) for draw in drawn}


def test_a_version_of_a_pool_keeps_as_many_examples_as_it_may(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, ...]] = set()

    class Watched(states.PrefixStates):
        def __init__(self, base: Any, reader: Any, examples: Any, *rest: Any) -> None:
            seen.add(tuple(example.text for example in examples))
            super().__init__(base, reader, examples, *rest)

    monkeypatch.setattr(functional, "PrefixStates", Watched)
    source = pool(tiny_llama, versions_of(tiny_llama), tmp_path, pool=VersionPool(num_versions=3, num_examples=5))
    mixes = {tuple(source.draw(seed, 100 + seed).mix) for seed in range(24)}
    assert {len(texts) for texts in seen} == {5} and len(toy_task().examples("train")) > 5
    assert len(seen) == len(mixes)  # each version has its own


def test_a_loss_on_kept_states_is_that_of_the_whole_virtual_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, again = (
        pool(tiny_llama, versions_of(tiny_llama), tmp_path),
        pool(tiny_llama, versions_of(tiny_llama), tmp_path),
    )
    factors = random_factors(source.draw(0).layout, 3)
    for seed in range(8):
        draw = source.draw(seed)
        found, later = float(draw.loss([factors])), float(again.draw(seed).loss([factors]))  # computed, then read
        assert found == later
        with monkeypatch.context() as patch:
            patch.setattr(causal, "skip_layers", lambda model, batch, first_layer: batch)
            whole = pool(tiny_llama, versions_of(tiny_llama), tmp_path / "none").draw(seed)
            assert whole.asked[0][1].first_layer == 0 and whole.mix == draw.mix
            assert float(whole.loss([factors])) == pytest.approx(found, abs=1e-5)
    assert not (tmp_path / "none").exists()


def test_a_pool_without_a_place_for_its_states_is_an_error(tiny_llama: Path) -> None:
    with pytest.raises(GeneratorError, match="a pool of virtual versions keeps states; name a folder"):
        FunctionalSource(
            versions_of(tiny_llama),
            [[0, 1, 2]],
            [toy_task()],
            [],
            [layout_of(tiny_llama)],
            FunctionalPhase(pool=VersionPool(num_versions=2)),
        )
