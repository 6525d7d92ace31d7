"""Weight probes: what tells two versions of one architecture apart, in k*k numbers a module.

A probe of W [d_out, d_in] is the k x k matrix u^T W v with fixed random u [d_out, k], v [d_in, k] a module shape, scaled
so that W with unit-variance entries gives unit variance. A metadata string cannot see what changed; a probe can.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from oral_ray.bases.headers import TensorEntry
from oral_ray.bases.spec import BaseModelSpec, LinearModule, layout_tensors, weight_entry
from oral_ray.config import derive_seed
from oral_ray.errors import BaseModelError
from oral_ray.objects import Objects

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def weight_probes(
    objects: Objects, prefix: str, spec: BaseModelSpec, roles: Sequence[str], num_probes: int
) -> dict[str, Tensor]:
    """Probes {module: [num_probes, num_probes] float32} of all modules with one of the roles, one weight at a time."""
    tensors = layout_tensors(objects, prefix)
    where = f"{objects.uri}/{prefix}"
    chosen = [module for module in spec.modules if module.role in roles]
    if not chosen:
        known = sorted({module.role for module in spec.modules})
        raise BaseModelError(f"{where} has no module with a role in {tuple(roles)}; it has {', '.join(known)}")
    probes = {}
    for module in chosen:
        weight = _read_weight(objects, module, tensors, where)
        left, right = _probe_vectors(module.d_out, module.d_in, num_probes)
        probe = left.T @ weight @ right
        if not torch.isfinite(probe).all():
            raise BaseModelError(
                f"{where}: {module.name}.weight holds values that are not finite; do not use this base"
            )
        probes[module.name] = probe
    return probes


def _read_weight(objects: Objects, module: LinearModule, tensors: Mapping[str, TensorEntry], where: str) -> Tensor:
    entry = weight_entry(module, tensors, where)
    if entry.dtype not in _DTYPES:
        raise BaseModelError(f"{where}: {module.name}.weight is {entry.dtype}; probes need one of {', '.join(_DTYPES)}")
    data = bytearray(objects.range(entry.key, entry.start, entry.end - entry.start))
    weight = torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape).float()
    return weight.T if module.transposed else weight


@cache
def _probe_vectors(d_out: int, d_in: int, num_probes: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(derive_seed(0, "weight-probe", d_out, d_in))
    left, right = (torch.randn(size, num_probes, generator=rng) for size in (d_out, d_in))
    return left / d_out**0.5, right / d_in**0.5
