"""Weight probes: linear in the weight, different for other versions, blind to how a checkpoint stores it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from oral_ray.bases.probes import weight_probes
from oral_ray.bases.spec import BaseModelSpec, LinearModule
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects

D_OUT, D_IN = 24, 40


def spec(transposed: bool = False) -> BaseModelSpec:
    modules = (
        LinearModule(name="layer.0.query", role="q", layer=0, d_in=D_IN, d_out=D_OUT, transposed=transposed),
        LinearModule(name="layer.0.value", role="v", layer=0, d_in=D_IN, d_out=D_OUT, transposed=transposed),
    )
    return BaseModelSpec(model_type="x", kind="encoder", hidden_size=D_IN, num_layers=1, modules=modules)


def probe(folder: Path, weight: Tensor, roles: tuple[str, ...] = ("q",), transposed: bool = False, k: int = 4):
    tensors = {f"layer.0.{name}.weight": weight.clone() for name in ("query", "value")}
    save_file(tensors, folder / "model.safetensors")
    return weight_probes(FileObjects(folder), "", spec(transposed), roles, k)


def weights(seed: int, num: int = 1) -> Tensor:
    return torch.randn(num, D_OUT, D_IN, generator=torch.Generator().manual_seed(seed)).squeeze(0)


def test_a_probe_is_linear_in_the_weight(tmp_path: Path):
    first, second = weights(1), weights(2)
    mixed = probe(tmp_path, 0.3 * first - 2 * second)["layer.0.query"]
    parts = 0.3 * probe(tmp_path, first)["layer.0.query"] - 2 * probe(tmp_path, second)["layer.0.query"]
    torch.testing.assert_close(mixed, parts)
    assert not torch.allclose(mixed, torch.zeros(4, 4))


def test_a_probe_of_unit_variance_weights_has_about_unit_variance(tmp_path: Path):
    entries = torch.stack([probe(tmp_path, weights(seed), k=8)["layer.0.query"] for seed in range(20)])
    assert 0.7 < float(entries.square().mean()) < 1.4


def test_the_probes_are_of_the_modules_with_the_roles_asked_for(tmp_path: Path):
    assert list(probe(tmp_path, weights(1), ("v",))) == ["layer.0.value"]
    both = probe(tmp_path, weights(1), ("q", "v", "up"))
    assert list(both) == ["layer.0.query", "layer.0.value"]
    assert torch.equal(both["layer.0.query"], both["layer.0.value"])  # one shape, one pair of vectors
    with pytest.raises(BaseModelError, match=r"no module with a role in \('up',\); it has q, v"):
        probe(tmp_path, weights(1), ("up",))


def test_probes_are_the_same_every_time_and_differ_where_one_entry_does(tmp_path: Path):
    first, changed = weights(1), weights(1)
    changed[3, 5] += 0.1
    assert torch.equal(probe(tmp_path, first)["layer.0.query"], probe(tmp_path, first)["layer.0.query"])
    assert not torch.equal(probe(tmp_path, first)["layer.0.query"], probe(tmp_path, changed)["layer.0.query"])


def test_a_weight_that_is_stored_transposed_has_the_same_probe(tmp_path: Path):
    plain = probe(tmp_path, weights(1))["layer.0.query"]
    stored = probe(tmp_path, weights(1).T.contiguous(), transposed=True)["layer.0.query"]
    torch.testing.assert_close(stored, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_weight_of_another_precision_has_nearly_the_same_probe(tmp_path: Path, dtype: torch.dtype):
    plain = probe(tmp_path, weights(1))["layer.0.query"]
    torch.testing.assert_close(probe(tmp_path, weights(1).to(dtype))["layer.0.query"], plain, atol=0.02, rtol=0)


def test_a_weight_of_whole_numbers_is_refused_with_what_is_possible(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"layer.0.query.weight is I8; probes need one of F64, F32, F16, BF16"):
        probe(tmp_path, weights(1).to(torch.int8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float):
    weight = weights(1)
    weight[-1, -1] = value
    with pytest.raises(BaseModelError, match=r"layer.0.query.weight holds values that are not finite"):
        probe(tmp_path, weight)
