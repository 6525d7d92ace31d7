"""Copies of a base that peft may change: one without weights, one that shares the base's.

peft puts its layers into the model it is given. What is given here is a copy of the module tree: whatever peft does,
and wherever it fails, the base is as it was.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def without_weights(model: nn.Module) -> nn.Module:
    """The same modules under the same names with all parameters and buffers on the meta device."""
    return _copied(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def sharing_weights(model: nn.Module) -> nn.Module:
    """The same modules under the same names on the same weights; no memory is copied."""
    return _copied(model, lambda tensor: tensor.detach())


def _copied(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    # deepcopy asks its memo first: what it finds there by identity it takes instead of copying. Tied weights stay tied.
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(replace(parameter.data), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = replace(buffer)
    return copy.deepcopy(model, memo)
