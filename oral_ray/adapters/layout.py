"""AdapterLayout: the geometry of a LoRA adapter as weight tokens, derived from a base model's shapes alone.

A slot is one factor of one module: `lora_A` [r, d_in] or `lora_B` [d_out, r]. A weight token is a piece of at most
`token_dim` values of ONE rank row of a factor: row i of A, column i of B. So a slot holds r rows of `width` values
(d_in for A, d_out for B), each cut into ceil(width / token_dim) tokens, the last zero-padded. Token size and generator
width are independent; RPG (arXiv 2501.11587) ties them and pays with 0.95-2.8 billion generator parameters.

    layout = AdapterLayout.of(spec, LoraSettings(r=8, target_modules=("q", "v")), token_dim=512)
    layout.num_tokens, layout.num_parameters
"""

import re
from functools import cached_property, lru_cache
from typing import Literal

from oral_ray.bases.roles import role_of
from oral_ray.bases.spec import BaseModelSpec, LinearModule, shortest_ending
from oral_ray.config import LoraSettings, Record, fingerprint
from oral_ray.errors import LayoutError

Factor = Literal["A", "B"]


class AdapterSlot(Record):
    """One LoRA factor of one module; its tokens are [first_token, first_token + r * chunks) of the layout."""

    module: str
    role: str
    factor: Factor
    depth: float
    d_in: int
    d_out: int
    width: int
    chunks: int
    first_token: int

    @property
    def key(self) -> str:
        """The tensor's name in adapter_model.safetensors, peft's spelling."""
        return f"base_model.model.{self.module}.lora_{self.factor}.weight"

    def shape(self, r: int) -> tuple[int, int]:
        """The tensor's shape: A [r, d_in], B [d_out, r]."""
        return (r, self.width) if self.factor == "A" else (self.width, r)


class AdapterLayout(Record):
    """All slots of one kind of adapter on one architecture; `depth` of a slot is its layer over the last layer.

    Nothing below `first_layer` is adapted.
    """

    architecture: str
    lora: LoraSettings
    token_dim: int
    target_modules: tuple[str, ...]
    fan_in_fan_out: bool
    first_layer: int
    slots: tuple[AdapterSlot, ...]

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, spec: BaseModelSpec, lora: LoraSettings, token_dim: int) -> "AdapterLayout":
        """Derive the layout of LoRA settings on a base; LayoutError names what does not fit and what would.

        A rank larger than a module is wide is taken, as peft takes it: keys and values are narrow in many models.
        Remembered: at 96 tokens an adapter this took a tenth of the time of a sample.
        """
        targets = _targets(spec, lora)
        if len({module.transposed for module in targets}) > 1:
            names = ", ".join(next(m.name for m in targets if m.transposed == kind) for kind in (True, False))
            raise LayoutError(f"target_modules {list(lora.target_modules)} mix Conv1D and Linear ({names}); choose one")
        slots: list[AdapterSlot] = []
        first = 0
        for module in targets:
            for factor, width in (("A", module.d_in), ("B", module.d_out)):
                chunks = -(-width // token_dim)
                slots.append(
                    AdapterSlot(
                        module=module.name,
                        role=module.role,
                        factor=factor,  # type: ignore[arg-type]
                        depth=module.layer / max(1, spec.num_layers - 1),
                        d_in=module.d_in,
                        d_out=module.d_out,
                        width=width,
                        chunks=chunks,
                        first_token=first,
                    )
                )
                first += lora.r * chunks
        return cls(
            architecture=spec.digest,
            lora=lora,
            token_dim=token_dim,
            target_modules=_peft_names(spec, targets),
            fan_in_fan_out=targets[0].transposed,
            first_layer=min(module.layer for module in targets),
            slots=tuple(slots),
        )

    @cached_property
    def digest(self) -> str:
        """Names this layout: architecture, LoRA settings and token size."""
        return fingerprint(self.architecture, self.lora, self.token_dim)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def max_rank(self) -> int:
        """The largest rank that a change of any of the modules can have; more rows of factors add nothing."""
        return max(min(slot.d_in, slot.d_out) for slot in self.slots)

    def check_rank(self) -> None:
        """Raise LayoutError where every module is narrower than the rank: nobody should generate such adapters."""
        if self.lora.r > self.max_rank:
            raise LayoutError(
                f"rank r={self.lora.r} is larger than every target module allows ({self.max_rank}); lower lora.r"
            )

    @property
    def num_tokens(self) -> int:
        last = self.slots[-1]
        return last.first_token + self.lora.r * last.chunks

    @property
    def num_parameters(self) -> int:
        return sum(self.lora.r * slot.width for slot in self.slots)

    @property
    def num_bytes(self) -> int:
        """Bytes of the adapter's tensors in float32."""
        return 4 * self.num_parameters

    def check_shapes(self, shapes: dict[str, tuple[int, ...]], name: str) -> None:
        """Raise LayoutError unless exactly this layout's tensors are there, each in its shape."""
        wanted = {slot.key: slot.shape(self.lora.r) for slot in self.slots}
        if missing := sorted(wanted.keys() - shapes.keys()):
            raise LayoutError(f"{name} lacks {len(missing)} tensors of its layout, first {missing[0]!r}")
        if extra := sorted(shapes.keys() - wanted.keys()):
            raise LayoutError(f"{name} has {len(extra)} tensors its layout does not know, first {extra[0]!r}")
        for key, shape in wanted.items():
            if tuple(shapes[key]) != shape:
                raise LayoutError(f"{name}: {key} is {tuple(shapes[key])}, the layout (r={self.lora.r}) needs {shape}")


def _targets(spec: BaseModelSpec, lora: LoraSettings) -> list[LinearModule]:
    names, last_layers = lora.target_modules, lora.last_layers or spec.num_layers
    if last_layers > spec.num_layers:
        raise LayoutError(f"last_layers={last_layers} of a model with {spec.num_layers} layers; lower lora.last_layers")
    unknown = [n for n in names if not any(_is_target(module, n) for module in spec.modules)]
    if unknown or not names:
        roles = ", ".join(dict.fromkeys(module.role for module in spec.modules))
        endings = ", ".join(dict.fromkeys(shortest_ending(module.name) for module in spec.modules))
        raise LayoutError(
            f"target_modules {list(names)}: {_why_unknown(spec, unknown)}; roles are {roles}, names are {endings}"
        )
    first = spec.num_layers - last_layers
    chosen = [m for m in spec.modules if m.layer >= first and any(_is_target(m, n) for n in names)]
    if not chosen:
        raise LayoutError(f"target_modules {list(names)} are not in the last {last_layers} layers; raise last_layers")
    return chosen


def _is_target(module: LinearModule, name: str) -> bool:
    return name == module.role or _names(name, module.name)


def _names(target: str, module: str) -> bool:
    """Whether peft takes a name of `target_modules` for a module: by its full name or a dotted ending of it."""
    return module == target or module.endswith(f".{target}")


def _why_unknown(spec: BaseModelSpec, unknown: list[str]) -> str:
    for target in unknown:
        alike = re.sub(r"\d+", "0", target)  # one example stands for all layers
        for name, why in spec.no_targets.items():
            if _names(target, name) or _names(alike, re.sub(r"\d+", "0", name)) or target == role_of(name):
                return f"{name} {why}"
    return f"{unknown or 'nothing'} matches no module of {spec.model_type}"


def _peft_names(spec: BaseModelSpec, targets: list[LinearModule]) -> tuple[str, ...]:
    """The shortest dotted endings that name the targets and nothing else, for adapter_config.json."""
    chosen = {module.name for module in targets}
    named: dict[str, set[str]] = {}
    for name in (*(module.name for module in spec.modules), *spec.no_targets):
        for ending in _endings(name):
            named.setdefault(ending, set()).add(name)
    names = set()
    for module in targets:
        start = shortest_ending(module.name)
        first = start.count(".") + (start == "dense")  # which says nothing alone
        names.add(next(ending for ending in _endings(module.name)[first:] if named[ending] <= chosen))
    return tuple(sorted(names))


def _endings(name: str) -> list[str]:
    """The dotted endings of a name, shortest first."""
    parts = name.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
