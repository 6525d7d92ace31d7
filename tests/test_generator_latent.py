"""The baseline Cond P-Diff: it learns adapters by condition, one layout only, behind the interface of the generator."""

from pathlib import Path

import pytest
import torch
from factory_fixtures import randn, small_spec
from torch import Tensor

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.config import LatentConfig, RegressionObjective, SamplingConfig
from oral_ray.errors import GeneratorError
from oral_ray.generator.condition import fit_probe_stats
from oral_ray.generator.data import Batch
from oral_ray.generator.diffusion import sample_times
from oral_ray.generator.functional import FunctionalItem
from oral_ray.generator.latent import LatentNetwork
from oral_ray.generator.model import Generator, build_network, load_generator, save_generator
from oral_ray.generator.spec import GeneratorSpec

NUM_TOKENS, TOKEN_DIM, NUM_CONDITIONS = 10, 24, 3
SIZES = LatentConfig(patch=4, stride=2, num_layers=2, channels=32, latent_channels=8, width=32, num_blocks=2)


def spec(latent: LatentConfig = SIZES, num_tokens: int = NUM_TOKENS) -> GeneratorSpec:
    return small_spec().model_copy(update={"generator": latent, "num_tokens": num_tokens})


def asked(of: Tensor, seed: int) -> Batch:
    """What a network is given in training for adapters `of` the conditions 0, 1, 2, ...; noise by seed."""
    num = len(of)
    yes = torch.ones(num, dtype=torch.bool)
    return Batch(
        of, torch.ones_like(of, dtype=torch.bool), torch.zeros(num, of.shape[1], POSITION_DIM), texts()[:num],
        randn(num, 10, seed=1), yes, yes, randn(*of.shape, seed=seed),
        sample_times(num, 2.0, torch.Generator().manual_seed(seed)),
        before_BNWP=torch.zeros(num, 0, 0, POSITION_DIM), num_before_B=torch.zeros(num, dtype=torch.long),
    )  # fmt: skip


def texts() -> Tensor:
    return 3 * torch.eye(12)[:NUM_CONDITIONS]


def adapters() -> Tensor:
    return randn(NUM_CONDITIONS, NUM_TOKENS, TOKEN_DIM, seed=5)


@pytest.fixture(scope="module")
def trained() -> LatentNetwork:
    network = build_network(spec(), 0)
    assert isinstance(network, LatentNetwork)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(400):
        loss = network(asked(adapters(), step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def sample(network: LatentNetwork, text_BE: Tensor, seed: int = 0, num_tokens: int = NUM_TOKENS) -> Tensor:
    rng, num = torch.Generator().manual_seed(seed), len(text_BE)
    mask = torch.ones(num, num_tokens, TOKEN_DIM, dtype=torch.bool)
    return network.sample(
        torch.zeros(num, num_tokens, POSITION_DIM), mask, text_BE, randn(NUM_CONDITIONS, 10, seed=1)[:num],
        lambda: torch.randn(num, num_tokens, TOKEN_DIM, generator=rng), SamplingConfig(num_steps=10),
    )  # fmt: skip


def test_it_samples_the_adapter_of_its_condition(trained: LatentNetwork):
    found = sample(trained, texts())
    error = (found[:, None] - adapters()[None]).square().mean((2, 3))
    assert error.argmin(1).tolist() == [0, 1, 2]
    assert error.diagonal().max() < 0.3 < error[0, 1]
    assert torch.equal(found, sample(trained, texts())) and not torch.equal(found, sample(trained, texts(), seed=1))


def test_a_checkpoint_samples_what_the_network_did(trained: LatentNetwork, tmp_path: Path):
    from oral_ray.adapters.tokens import TokenStats

    probes = fit_probe_stats([("arch", {"q": randn(2, 2, seed=i)}) for i in range(3)], 2)
    save_generator(Generator(spec(), trained, TokenStats({}, {}), probes), tmp_path)
    loaded = load_generator(tmp_path).network
    assert isinstance(loaded, LatentNetwork)
    assert torch.equal(sample(loaded, texts()), sample(trained, texts()))


def test_another_length_is_refused(trained: LatentNetwork):
    with pytest.raises(GeneratorError, match=r"knows adapters of \(10, 24\) tokens only, this one has \(11, 24\)"):
        sample(trained, texts(), num_tokens=11)
    with pytest.raises(GeneratorError, match="needs one layout and the diffusion objective"):
        build_network(spec(num_tokens=0), 0)
    with pytest.raises(GeneratorError, match="diffusion objective"):
        changed = spec().generator.model_copy(update={"objective": RegressionObjective()})
        build_network(spec().model_copy(update={"generator": changed}), 0)


@pytest.mark.parametrize("num_tokens", [1, 7, 10])
def test_any_length_is_padded_to_what_the_strides_need(num_tokens: int):
    network = build_network(spec(num_tokens=num_tokens), 0)
    loss = network(asked(randn(2, num_tokens, TOKEN_DIM), seed=2))
    loss.backward()
    assert torch.isfinite(loss)


def test_the_functional_phase_reaches_every_weight_that_samples(trained: LatentNetwork):
    inputs = asked(adapters(), 0)
    item = FunctionalItem(
        inputs.position_BLP, inputs.mask_BLD, inputs.text_BE, inputs.model_BG, inputs.noise_BLD,
        lambda tokens_BLD: tokens_BLD.square().mean(),
    )  # fmt: skip
    network = build_network(spec(), 0)
    network(inputs, functional=item, diffusion_weight=0.0).backward()
    silent = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(
        name.startswith(("encoder", "no_", "blocks", "latent_in", "text_in", "model_in", "time_in")) for name in silent
    )
    trained.zero_grad()
    trained(inputs, item, 0.0).backward()
    silent = {name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(name.startswith(("encoder", "no_")) for name in silent)
