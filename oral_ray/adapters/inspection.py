"""What an adapter for a base model would look like, from its config and headers alone: no weights, no torch.

print(inspect_base("hf:ORG/NAME", r=8, lora_alpha=16.0, target_modules=None, token_dim=384).text)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.sources import open_source
from oral_ray.bases.spec import BaseModelSpec, read_spec
from oral_ray.config import build_config

USUAL_ROLES = ("q", "v", "qkv")
"""What is adapted where nobody says what: queries and values, or the module that a model fuses them into."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The architecture of a base model, and the layout of an adapter for it."""

    spec: BaseModelSpec
    layout: AdapterLayout

    @property
    def as_json(self) -> dict[str, Any]:
        """Sizes in numbers of parameters and in bytes of float32, and every slot."""
        return {
            "model_type": self.spec.model_type,
            "architecture": self.spec.digest,
            "num_tokens": self.layout.num_tokens,
            "num_parameters": self.layout.num_parameters,
            "num_bytes": self.layout.num_bytes,
            "slots": [slot.model_dump() for slot in self.layout.slots],
        }

    @property
    def text(self) -> str:
        """The same for a reader: a line per slot, the sizes last."""
        layout, r = self.layout, self.layout.lora.r
        lines = [self.spec.metadata, f"architecture {self.spec.digest}"]
        lines.append(f"{'module':56} {'factor':6} {'shape':>16} {'tokens':>7}")
        for slot in layout.slots:
            shape = "x".join(map(str, slot.shape(r)))
            lines.append(f"{slot.module:56} {slot.factor:6} {shape:>16} {r * slot.chunks:7d}")
        lines.append(
            f"{len(layout.slots)} slots, {layout.num_tokens:,} tokens of {layout.token_dim}, "
            f"{layout.num_parameters:,} parameters, {layout.num_bytes:,} bytes in float32"
        )
        return "\n".join(lines)


def inspect_base(
    source: str, r: int, lora_alpha: float, target_modules: Sequence[str] | None, token_dim: int
) -> Inspection:
    """The layout of LoRA settings on a source of a base model; without targets that of `USUAL_ROLES`.

    ConfigError for settings that cannot be, BaseModelError for a source that is none, LayoutError for targets or a rank
    that the model does not have.
    """
    lora = {"r": r, "lora_alpha": lora_alpha, "target_modules": list(target_modules or USUAL_ROLES[:2])}
    settings = build_config({"lora": lora, "tokens": {"token_dim": token_dim}}).lora
    with open_source(source) as (objects, prefix):
        spec = read_spec(objects, prefix)
    if not target_modules:
        roles = {module.role for module in spec.modules}
        usual = tuple(role for role in USUAL_ROLES if role in roles) or tuple(sorted(roles))
        settings = settings.model_copy(update={"target_modules": usual})
    layout = AdapterLayout.of(spec, settings, token_dim)
    layout.check_rank()
    return Inspection(spec, layout)
