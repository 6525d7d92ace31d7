"""The Mamba-2 block: chunked SSD against the recurrence written out, and against transformers' implementation."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from factory_fixtures import randn, shaken_network, small_spec
from torch import Tensor
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from oral_ray.adapters.tokens import POSITION_DIM
from oral_ray.errors import GeneratorError
from oral_ray.generator.ssm import Mamba2, Scan, ssd, ssd_cuda

NUM_HEADS, HEAD_DIM, STATE_DIM = 3, 4, 5


def inputs(length: int, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """x, dt, a, b, c of the recurrence, with decays from slow to fast."""
    x, dt, b, c = (
        randn(batch, length, *shape, seed=seed + i)
        for i, shape in enumerate(((NUM_HEADS, HEAD_DIM), (NUM_HEADS,), (STATE_DIM,), (STATE_DIM,)))
    )
    a = -torch.tensor([0.1, 1.0, 5.0])
    return x, torch.nn.functional.softplus(dt), a, b, c


def recurrence(x, dt, a, b, c, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition, one step at a time: h = exp(dt a) h + dt x b^T, y = h c."""
    h = torch.zeros(len(x), NUM_HEADS, HEAD_DIM, STATE_DIM) if state is None else state
    rows = []
    for t in range(x.shape[1]):
        added = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None, :]
        h = torch.exp(dt[:, t] * a)[..., None, None] * h + added
        rows.append((h * c[:, t, None, None, :]).sum(-1))
    return torch.stack(rows, dim=1), h


def gradients(scan, tensors: tuple[Tensor, ...], state: Tensor, *rest) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in (*tensors, state)]
    y, after = scan(*leaves[:5], *rest, leaves[5])
    weights = randn(*y.shape, seed=7), randn(*after.shape, seed=8)
    ((y * weights[0]).sum() + (after * weights[1]).sum()).backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("length", [1, 7, 16, 33])
@pytest.mark.parametrize("chunk_size", [1, 4, 16, 64])
@pytest.mark.parametrize("with_state", [False, True])
def test_chunked_ssd_is_the_recurrence(length: int, chunk_size: int, with_state: bool) -> None:
    tensors = inputs(length)
    state = randn(2, NUM_HEADS, HEAD_DIM, STATE_DIM, seed=9) if with_state else None
    y, after = ssd(*tensors, chunk_size, state)
    wanted_y, wanted_after = recurrence(*tensors, state)
    assert torch.allclose(y, wanted_y, atol=1e-4) and torch.allclose(after, wanted_after, atol=1e-4)


@pytest.mark.parametrize(("length", "chunk_size"), [(12, 4), (13, 4), (7, 64), (9, 1)])
def test_gradients_of_chunked_ssd_are_those_of_the_recurrence(length: int, chunk_size: int) -> None:
    tensors, state = inputs(length), randn(2, NUM_HEADS, HEAD_DIM, STATE_DIM, seed=9)
    found = gradients(ssd, tensors, state, chunk_size)
    wanted = gradients(recurrence, tensors, state)
    for name, left, right in zip(("x", "dt", "a", "b", "c", "state"), found, wanted, strict=True):
        assert right.abs().max() > 1e-3, name
        assert torch.allclose(left, right, atol=1e-4, rtol=1e-3), name


def test_fast_decay_over_long_chunks_neither_overflows_nor_gives_nan() -> None:
    x, _, _, b, c = inputs(64)
    dt = torch.full((2, 64, NUM_HEADS), 20.0).requires_grad_()
    y, after = ssd(x, dt, -torch.tensor([1.0, 16.0, 100.0]), b, c, 64, None)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(after).all() and torch.isfinite(dt.grad).all()


def block(chunk_size: int = 8, width: int = 16) -> Mamba2:
    made = Mamba2(width=width, state_dim=STATE_DIM, head_dim=8, chunk_size=chunk_size, kernel="torch")
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            scale = 0.2 if parameter.dim() > 1 else 0.5
            parameter.copy_(randn(*parameter.shape, seed=100 + i) * scale + (parameter.dim() == 1))
    return made


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 9), (5, 20), (8, 16), (23,)])
def test_a_sequence_cut_anywhere_gives_what_the_whole_gives(cuts: tuple[int, ...]) -> None:
    mixer, u = block(), randn(2, 24, 16)
    whole, end = mixer(u)
    state, pieces = None, []
    for piece in torch.tensor_split(u, cuts, dim=1):
        y, state = mixer(piece, state)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)
    assert torch.allclose(state.ssd, end.ssd, atol=1e-5) and torch.allclose(state.conv, end.conv, atol=1e-6)
    restarted = mixer(u[:, cuts[0] :])[0]
    assert not torch.allclose(restarted, whole[:, cuts[0] :], atol=1e-3)  # so the state does matter


def test_what_comes_later_changes_nothing_before_it() -> None:
    mixer, u = block(), randn(1, 20, 16)
    other = u.clone()
    other[:, 13:] = randn(1, 7, 16, seed=1) * 10
    before, after = mixer(u)[0], mixer(other)[0]
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.allclose(before[:, 13:], after[:, 13:], atol=1e-2)


def test_padding_at_the_end_changes_no_output() -> None:
    mixer, u = block(), randn(2, 13, 16)
    padded = torch.nn.functional.pad(u, (0, 0, 0, 9))
    assert torch.allclose(mixer(padded)[0][:, :13], mixer(u)[0], atol=1e-6)


def test_chunk_size_changes_nothing() -> None:
    u = randn(2, 30, 16)
    first, second = block(4), block(30)
    assert torch.allclose(first(u)[0], second(u)[0], atol=1e-5)


@pytest.mark.parametrize("length", [8, 29])
def test_block_equals_transformers_forward_and_backward(length: int) -> None:
    ours = block()
    config = Mamba2Config(
        hidden_size=16, expand=2, head_dim=8, num_heads=4, state_size=STATE_DIM, n_groups=1, conv_kernel=4,
        chunk_size=8, use_bias=False, use_conv_bias=True, layer_norm_epsilon=1e-5, num_hidden_layers=1,
    )  # fmt: skip
    theirs = Mamba2Mixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    mine, other = randn(2, length, 16).requires_grad_(), randn(2, length, 16).requires_grad_()
    y, wanted = ours(mine)[0], theirs(other)
    assert torch.allclose(y, wanted, atol=1e-5)
    weights = randn(*y.shape, seed=3)
    (y * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.allclose(mine.grad, other.grad, atol=1e-4)
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, theirs_by_name[name].grad, atol=1e-3, rtol=1e-3), name


def test_head_dim_that_does_not_divide_is_refused_with_both_numbers() -> None:
    with pytest.raises(GeneratorError, match="head_dim=7 does not divide 32"):
        Mamba2(width=16, state_dim=4, head_dim=7, chunk_size=8)


def without_mamba(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    spec = SimpleNamespace() if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_cuda_kernel_without_mamba_ssm_answers_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without_mamba(monkeypatch, installed=False)
    mixer = Mamba2(width=16, state_dim=4, head_dim=8, chunk_size=8, kernel="cuda")
    with pytest.raises(GeneratorError, match=r"pip install 'oral-ray\[gpu\]' --no-build-isolation.*kernel=auto"):
        mixer(randn(1, 4, 16))


def test_cuda_kernel_on_a_cpu_is_refused_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    without_mamba(monkeypatch, installed=True)
    with pytest.raises(GeneratorError, match="needs a CUDA device, the model is on cpu"):
        Scan.find("cuda").on(torch.device("cpu"))


def test_auto_takes_the_kernel_only_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    without_mamba(monkeypatch, installed=True)
    assert Scan.find("auto").on(cpu) is ssd
    assert Scan.find("auto").on(cuda) is Scan.find("cuda").on(cuda) is ssd_cuda
    assert Scan.find("torch").on(cuda) is ssd
    without_mamba(monkeypatch, installed=False)
    assert Scan.find("auto").on(cuda) is ssd


def test_the_kernel_is_looked_up_when_a_network_is_built_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_mamba(monkeypatch, installed=False)
    with caplog.at_level("DEBUG", "oral_ray.generator"):
        network = shaken_network(small_spec())
    monkeypatch.setattr(importlib.util, "find_spec", None)  # whoever looks again fails
    network.prototypes(randn(1, 5, POSITION_DIM), randn(1, 12), randn(1, 10), *2 * (torch.ones(1, dtype=torch.bool),))
    assert [record.getMessage() for record in caplog.records] == [
        "scan of the recurrent layers: torch (generator.kernel=torch, mamba-ssm not installed)"
    ]
