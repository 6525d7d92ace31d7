"""What a generator cannot make, said before it is asked."""

from collections.abc import Collection

from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.catalog import BaseRecord
from oral_ray.config import LoraSettings
from oral_ray.errors import LayoutError


def refuse_base(base: BaseRecord, architectures: Collection[str], lora: LoraSettings) -> str:
    """Why a generator of these architectures cannot make such adapters for a base; empty when it can."""
    if base.spec.digest not in architectures:
        return f"the generator has not seen architecture {base.spec.digest[:12]} ({base.spec.model_type})"
    try:
        AdapterLayout.of(base.spec, lora, token_dim=base.spec.hidden_size).check_rank()
    except LayoutError as error:
        return str(error)
    return ""
