"""The functional phase: a generated adapter, run through a frozen base on task examples, teaches the generator.

Reconstruction alone learns what the corpus happens to hold. Here the loss is the task's own, and the base is mostly one
that nobody trained an adapter for: a virtual version W = sum_i c_i W_i of the seen versions (convex mixes, and steps past
the newest one); its weight probes are linear in W, so they mix with the same c. No adapter is trained for any of them.
The adapter is the one-step estimate from pure noise; gradients flow through it into the generator.

    source = FunctionalSource(bases, probes, tasks, layout, tables, encode_base, phase)
    item = source.item(seed)                 # one task on one virtual base
    loss = item.task_loss(tokens_1LD)        # normalised tokens -> cross-entropy, differentiable

Letters: S seen versions, L weight tokens, D token dim.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import detokenize, positions, token_mask
from oral_ray.bases.loading import LoadedBase
from oral_ray.config import FunctionalPhase
from oral_ray.errors import GeneratorError
from oral_ray.generator.data import CorpusTables
from oral_ray.generator.model import FunctionalItem
from oral_ray.tasks import Task
from oral_ray.tasks.scoring import build_head


class FunctionalSource:
    """Draws tasks and virtual versions of one architecture; every draw comes from the seed of its item."""

    def __init__(
        self, bases: Sequence[LoadedBase], probes: Sequence[Mapping[str, Tensor]], lines: Sequence[Sequence[int]],
        tasks: Sequence[Task], layout: AdapterLayout, tables: CorpusTables,
        encode_base: Callable[[Mapping[str, Tensor]], Tensor], phase: FunctionalPhase,
    ) -> None:  # fmt: skip
        """`bases` and their `probes` are the seen versions; `lines` their lines of descent by index, oldest first."""
        if len({base.record.spec.digest for base in bases}) != 1:
            raise GeneratorError("the functional phase mixes versions of one architecture; give each its own source")
        self._virtual = VirtualBase(bases)
        self._probes, self._lines, self._tasks, self._layout = probes, lines, tasks, layout
        self._tables, self._encode_base, self._phase = tables, encode_base, phase

    def item(self, seed: int, base_seed: int | None = None) -> FunctionalItem:
        """One task on one virtual version, with a batch of its training examples.

        Items of one `base_seed` share their version: mixing the weights of a large base costs more than a step on it.
        """
        rng = torch.Generator().manual_seed(seed)
        task = self._tasks[int(torch.randint(len(self._tasks), (), generator=rng))]
        mix_rng = rng if base_seed is None else torch.Generator().manual_seed(base_seed)
        mix = draw_mix(len(self._probes), self._lines, self._phase.extrapolation, mix_rng)
        base = self._virtual.set(mix)
        probes = {
            module: torch.stack([c * version[module] for c, version in zip(mix, self._probes, strict=True)]).sum(0)
            for module in self._probes[0]
        }
        examples = task.examples("train")
        chosen = torch.randint(len(examples), (self._phase.num_examples,), generator=rng).tolist()
        head = build_head(base.record.spec.kind, base.model, base.tokenizer, task.labels)
        batch = head.read([examples[i] for i in chosen])
        wordings = self._tables.prompts[task.id]
        layout, stats = self._layout, self._tables.stats

        def task_loss(tokens_1LD: Tensor) -> Tensor:
            factors = detokenize(stats.denormalize(tokens_1LD[0], layout), layout)
            with applied(base.model, factors, layout):
                return F.cross_entropy(head.logits(base.model, batch), batch.wanted_P)

        return FunctionalItem(
            positions(layout)[None],
            token_mask(layout)[None],
            wordings[int(torch.randint(len(wordings), (), generator=rng))][None],
            self._encode_base(probes)[None],
            torch.randn(1, layout.num_tokens, layout.token_dim, generator=rng),
            task_loss,
        )


class VirtualBase:
    """A model whose weights are a mix of several versions'; what all versions share is not touched."""

    def __init__(self, bases: Sequence[LoadedBase]) -> None:
        self._base, self._mix = bases[-1], [0.0] * (len(bases) - 1) + [1.0]
        parameters = [dict(base.model.named_parameters()) for base in bases]
        self._parts: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in parameters[-1].items():
            values = [version[name].detach() for version in parameters]
            if not all(torch.equal(values[0], value) for value in values[1:]):
                self._parts.append((parameter, torch.stack(values)))

    def set(self, mix: Sequence[float]) -> LoadedBase:
        """Give the model the weights sum_i mix[i] W_i; the base is shared, not copied."""
        if list(mix) == self._mix:
            return self._base
        self._mix, weights_S = list(mix), torch.tensor(mix)
        with torch.no_grad():
            for parameter, values in self._parts:
                parameter.copy_(torch.tensordot(weights_S, values.float(), dims=1))
        return self._base


def draw_mix(
    num_versions: int, lines: Sequence[Sequence[int]], extrapolation: float, rng: torch.Generator
) -> list[float]:
    """Coefficients summing to one: half the time a uniform convex mix, else the newest version of a line of descent plus
    a step away from an older one of that line."""
    if num_versions == 1:
        return [1.0]
    long = [line for line in lines if len(line) > 1]
    if float(torch.rand((), generator=rng)) < 0.5 or not long:
        exponential = -torch.log(torch.rand(num_versions, generator=rng).clamp(min=1e-12))
        return (exponential / exponential.sum()).tolist()
    *older, newest = long[int(torch.randint(len(long), (), generator=rng)) if len(long) > 1 else 0]
    away = older[int(torch.randint(len(older), (), generator=rng))]
    step = extrapolation * float(torch.rand((), generator=rng))
    mix = [0.0] * num_versions
    mix[newest], mix[away] = 1.0 + step, -step
    return mix


@contextmanager
def applied(model: nn.Module, factors: Factors, layout: AdapterLayout) -> Iterator[None]:
    """The model with an adapter as in peft, y = W x + (alpha / r) B A x, keeping the graph of A and B."""
    scaling = layout.lora.lora_alpha / layout.lora.r

    def hook(a_rI: Tensor, b_Or: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            change = scaling * F.linear(F.linear(inputs[0].to(a_rI.dtype), a_rI), b_Or)
            return output + change.to(output.dtype)

        return add

    handles = [model.get_submodule(name).register_forward_hook(hook(a, b)) for name, (a, b) in factors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
