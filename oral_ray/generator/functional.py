"""The functional phase: a generated adapter, run through a frozen base on task examples, teaches the generator.

Reconstruction alone learns what the corpus happens to hold. Here the loss is the task's own, and the base is mostly one
that nobody trained an adapter for: a virtual version W = sum_i c_i W_i of the seen versions (convex mixes, and steps past
the newest one); its weight probes are linear in W, so they mix with the same c. No adapter is trained for any of them.
With a pool of such versions (`phase.pool`) what lies below the first adapted layer is computed once an example.
The adapter is the one-step estimate from pure noise; gradients flow through it into the generator.

    source = FunctionalSource(bases, lineages, tasks, auxiliary, layouts, phase)
    loss = source.draw(seed).loss(adapters)                   # a few tasks on one virtual base, an adapter each
    items = FunctionalItems(source, probes, tables, encode_base)
    loss = items.item(seed).task_loss(tokens_BLD)             # the same for normalised tokens of a generator

Letters: B tasks of a step, S seen versions, L weight tokens, D token dim.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from oral_ray.adapters.gauge import Factors
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.tokens import detokenize, positions, token_mask
from oral_ray.bases.loading import LoadedBase
from oral_ray.bases.states import PrefixStates
from oral_ray.config import FunctionalPhase, derive_seed
from oral_ray.errors import GeneratorError
from oral_ray.generator.data import CorpusTables
from oral_ray.generator.spec import FunctionalItem
from oral_ray.modalities import Batch, TaskReader
from oral_ray.tasks import Task


class FunctionalSource:
    """Draws tasks and virtual versions of one architecture; every draw comes from the seed of its item."""

    def __init__(
        self, bases: Sequence[LoadedBase], lineages: Sequence[Sequence[int]], tasks: Sequence[Task],
        auxiliary: Sequence[Task], layouts: Sequence[AdapterLayout], phase: FunctionalPhase, keep: Path | None = None,
    ) -> None:  # fmt: skip
        """`bases` are the seen versions; `lineages` how they descend from each other, by index, oldest first.

        `tasks` have adapters in the corpus, `auxiliary` ones have only examples; an adapter is of one of the `layouts`.
        With `phase.pool` the states below the first adapted layer are kept in the folder `keep`.
        """
        if phase.pool and keep is None:
            raise GeneratorError("a pool of virtual versions keeps states; name a folder for them")
        if len({base.record.spec.digest for base in bases}) != 1:
            raise GeneratorError("the functional phase mixes versions of one architecture; give each its own source")
        self._virtual, self._num_versions, self._lineages = VirtualBase(bases), len(bases), lineages
        self._tasks, self._auxiliary = tasks, auxiliary
        self._layouts, self.phase, self._keep = layouts, phase, keep
        self._names = [base.record.fingerprint for base in bases]
        self.device = bases[-1].device

    def draw(self, seed: int, base_seed: int | None = None) -> "Draw":
        """`phase.tasks_per_step` tasks on one virtual version, each with a batch of its training examples.

        Draws of one `base_seed` share their version: mixing the weights of a large base costs more than a step on it.
        The version is made in place: a draw is good until the next one.
        """
        rng = torch.Generator().manual_seed(seed)
        tasks = [self._draw_task(rng) for _ in range(self.phase.tasks_per_step)]
        mix_rng = rng if base_seed is None else torch.Generator().manual_seed(base_seed)
        version = None
        if self.phase.pool:
            version = int(torch.randint(self.phase.pool.num_versions, (), generator=mix_rng))
            mix_rng = torch.Generator().manual_seed(derive_seed(version, "virtual version"))
        mix = draw_mix(self._num_versions, self._lineages, self.phase.extrapolation, mix_rng)
        base = self._virtual.set(mix)
        asked = [self._ask(base, task, version, mix, rng) for task in tasks]
        which = int(torch.randint(len(self._layouts), (), generator=rng)) if len(self._layouts) > 1 else 0
        return Draw(base.model, self._layouts[which], mix, tuple(task.id for task in tasks), asked, rng)

    def _draw_task(self, rng: torch.Generator) -> Task:
        auxiliary = self._auxiliary and float(torch.rand((), generator=rng)) < self.phase.further_frac
        tasks = self._auxiliary if auxiliary else self._tasks
        return tasks[int(torch.randint(len(tasks), (), generator=rng))]

    def _ask(
        self, base: LoadedBase, task: Task, version: int | None, mix: Sequence[float], rng: torch.Generator
    ) -> tuple[TaskReader, Batch]:
        """Random training examples of a task; for a version of the pool out of those that it has, from their states on."""
        reader = base.reader(task.labels)
        examples = task.examples("train")
        if version is None or self.phase.pool is None:
            chosen = torch.randint(len(examples), (self.phase.num_examples,), generator=rng).tolist()
            return reader, reader.read([examples[i] for i in chosen])
        own = torch.Generator().manual_seed(derive_seed(version, "examples", task.id))
        order = torch.randperm(len(examples), generator=own)[: self.phase.pool.num_examples].tolist()
        first = min(layout.first_layer for layout in self._layouts)
        assert self._keep is not None
        weights, texts = [self._names, list(mix)], [task.fingerprint, order]
        read = PrefixStates(base, reader, [examples[i] for i in order], first, self._keep, weights, texts)
        return reader, read(torch.randint(len(order), (self.phase.num_examples,), generator=rng).tolist())


@dataclass(frozen=True, slots=True)
class Draw:
    """Tasks on a virtual version: the loss of an adapter each. `mix` are the coefficients of the seen versions."""

    model: nn.Module
    layout: AdapterLayout
    mix: list[float]
    tasks: tuple[str, ...]
    asked: list[tuple[TaskReader, Batch]]
    rng: torch.Generator

    def loss(self, adapters: Sequence[Factors]) -> Tensor:
        """Mean over the tasks of the loss on their examples, adapter i on task i; differentiable."""
        losses = []
        for factors, (reader, batch) in zip(adapters, self.asked, strict=True):
            with applied(self.model, factors, self.layout):
                losses.append(reader.loss(self.model, batch))
        return torch.stack(losses).mean()


def train_static(source: FunctionalSource, start: Factors, num_steps: int, learning_rate: float, seed: int) -> Factors:
    """One adapter for all that the source draws, from `start`: AdamW, cosine decay to zero (arm `joint_virtual`)."""
    factors = {
        name: (a.to(source.device, copy=True).requires_grad_(), b.to(source.device, copy=True).requires_grad_())
        for name, (a, b) in start.items()
    }
    optimizer = torch.optim.AdamW([factor for pair in factors.values() for factor in pair], lr=learning_rate)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        draw = source.draw(
            derive_seed(seed, "static", step), derive_seed(seed, "virtual", step // source.phase.steps_per_base)
        )
        loss = draw.loss([factors] * len(draw.tasks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: (a.detach().cpu(), b.detach().cpu()) for name, (a, b) in factors.items()}


class FunctionalItems:
    """The draws of a source as a generator is asked them."""

    def __init__(
        self, source: FunctionalSource, probes: Sequence[Mapping[str, Tensor]], tables: CorpusTables,
        encode_base: Callable[[Mapping[str, Tensor]], Tensor],
    ) -> None:  # fmt: skip
        """`probes` are those of the source's versions, in their order."""
        self._source, self._probes, self._tables, self._encode_base = source, probes, tables, encode_base

    def item(self, seed: int, base_seed: int | None = None) -> FunctionalItem:
        """A draw as the generator is asked it: random wordings of the tasks, the probes of the version."""
        draw, stats = self._source.draw(seed, base_seed), self._tables.stats
        layout = draw.layout
        probes = {
            module: torch.stack([c * version[module] for c, version in zip(draw.mix, self._probes, strict=True)]).sum(0)
            for module in self._probes[0]
        }
        wordings, num = [self._tables.prompts[task_id] for task_id in draw.tasks], len(draw.tasks)

        def task_loss(tokens_BLD: Tensor) -> Tensor:
            return draw.loss([detokenize(stats.denormalize(tokens_LD, layout), layout) for tokens_LD in tokens_BLD])

        return FunctionalItem(
            positions(layout).expand(num, -1, -1),
            token_mask(layout).expand(num, -1, -1),
            torch.stack([rows[int(torch.randint(len(rows), (), generator=draw.rng))] for rows in wordings]),
            self._encode_base(probes).expand(num, -1),
            torch.randn(num, layout.num_tokens, layout.token_dim, generator=draw.rng),
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
        self._mix = list(mix)
        weights_S = torch.tensor(mix, device=self._base.device)
        with torch.no_grad():
            for parameter, values in self._parts:
                parameter.copy_(torch.tensordot(weights_S, values.float(), dims=1))
        return self._base


def draw_mix(
    num_versions: int, lineages: Sequence[Sequence[int]], extrapolation: float, rng: torch.Generator
) -> list[float]:
    """Coefficients summing to one: half the time a uniform convex mix, else the newest version of a lineage plus a step
    away from an older one of it."""
    if num_versions == 1:
        return [1.0]
    long = [lineage for lineage in lineages if len(lineage) > 1]
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
