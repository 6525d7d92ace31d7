"""Generation on a CUDA device gives what it gives on the CPU from the same noise; skipped where there is none."""

import pytest
import torch

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.config import ConditionConfig, GeneratorConfig, SamplingConfig
from oral_ray.generator.model import build_network
from oral_ray.generator.network import Network
from oral_ray.generator.spec import GeneratorSpec

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_tokens_sampled_on_the_device_are_those_of_the_cpu(kernel: str):
    def sampled(device: str) -> torch.Tensor:
        spec = GeneratorSpec(
            generator=GeneratorConfig.model_validate({"kernel": "torch" if device == "cpu" else kernel}),
            condition=ConditionConfig(), token_dim=96, text_dim=16, model_dim=20, text_encoder_fingerprint="",
            architectures=(), recipe="",
        )  # fmt: skip
        network = build_network(spec, 0)
        assert isinstance(network, Network)
        with torch.no_grad():  # the output layer starts at zero, which would agree with anything
            for parameter in network.denoiser.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        rng = torch.Generator().manual_seed(0)
        position, noise = torch.rand(2, 300, POSITION_DIM, generator=rng), torch.randn(2, 300, 96, generator=rng)
        text, model = torch.randn(2, 16, generator=rng), torch.randn(2, 20, generator=rng)
        inputs = (position, torch.ones(noise.shape, dtype=torch.bool), text, model)
        out = (
            network.to(device)
            .eval()
            .sample(*(tensor.to(device) for tensor in inputs), lambda: noise.to(device), SamplingConfig(num_steps=2))
        )  # type: ignore[misc]
        return out.cpu()

    torch.testing.assert_close(sampled("cuda"), sampled("cpu"), atol=2e-2, rtol=2e-2)
