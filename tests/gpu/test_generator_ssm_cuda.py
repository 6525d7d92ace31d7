"""mamba-ssm's Triton kernel against the plain torch SSD; skipped where there is no CUDA device or no mamba-ssm."""

import pytest
import torch

from oral_ray.generator.ssm import Mamba2, ssd, ssd_cuda

pytest.importorskip("mamba_ssm")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)


def inputs(length: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(2, length, *shape, generator=rng) for shape in ((4, 64), (64,), (64,)))
    dt = torch.rand(2, length, 4, generator=rng) * 0.1
    return tuple(tensor.cuda() for tensor in (x, dt, -torch.arange(1.0, 5.0), b, c))


@pytest.mark.parametrize("length", [64, 100, 1024])
def test_the_kernel_and_the_reference_agree_on_outputs_and_on_the_state_after(length: int):
    wanted, wanted_state = ssd(*inputs(length), 64, None)
    found, state = ssd_cuda(*inputs(length), 64, None)
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)  # the kernel multiplies in TF32
    torch.testing.assert_close(state, wanted_state, atol=2e-2, rtol=2e-2)


def test_a_sequence_cut_in_two_goes_on_where_it_stopped():
    torch.manual_seed(0)
    block = Mamba2(192, 64, 64, 64, kernel="cuda").cuda().eval()
    x = torch.randn(1, 300, 192, device="cuda")
    with torch.no_grad():
        whole, _ = block(x)
        first, state = block(x[:, :130])
        second, _ = block(x[:, 130:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=2e-2, rtol=2e-2)
