"""Where transformers' loader puts a tensor: its own renaming rules for a model, asked name by name. No weights.

A rule may rename (`bert.encoder...` to `encoder...`), fuse several tensors of a checkpoint into one of the model (experts)
or split one into several. A family with a fused projection whose checkpoints are stored in parts has such a rule in
transformers; there is none to write here.

    target, pattern = LoaderNames(model).target("model.layers.0.mlp.experts.3.w1.weight")
    pattern is None                     # the tensor as it stands; else it is one part of `target`, by that rule
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class LoaderNames:
    """The names of the tensors of a transformers model, as its loader comes to them."""

    model: Any

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Every tensor of the model by name, on the meta device, tied ones under each of their names."""
        return self.model.state_dict()

    @property
    def tied(self) -> Mapping[str, str]:
        """Name of a tied tensor -> the name of the one that it is."""
        return self.model.all_tied_weights_keys or {}

    def target(self, name: str) -> tuple[str, str | None]:
        """Where the loader puts a tensor, and the pattern of the rule by which it is one of several parts."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        target, pattern = rename_source_key(name, *self._rules, prefix, self.meta)
        if target not in self.meta and name in self.meta:
            target, pattern = rename_source_key(name, [], [], prefix, self.meta)
        return target, pattern

    def siblings(self, target: str, pattern: str) -> set[str]:
        """All tensors that the rule of a pattern makes, where it makes `target`."""
        rule = next(rule for rule in self._rules[1] if pattern in rule.source_patterns)
        patterns = [part.strip("^$") for part in rule.target_patterns]
        first = next((part for part in patterns if part in target), None)
        return {target} if first is None else {target.replace(first, part) for part in patterns}

    @cached_property
    def _rules(self) -> tuple[list[Any], list[Any]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        rules = get_model_conversion_mapping(self.model)
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        return [rule for rule in rules if not isinstance(rule, WeightConverter)], converters
