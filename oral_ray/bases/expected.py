"""What a base has to hold: the tensors that transformers' class for it takes, asked of the class on the meta device.

transformers fills what a checkpoint lacks with random numbers and passes over what it does not know. So the names in a
checkpoint are sent through the loader's own renaming rules first, and anything missing, left over, doubled, of another
shape or of another dtype is refused before a weight is read.

    expected = expected_model(config, "causal", tensors)
    expected.check(tensors, "file:///models/llama")          # BaseModelError with the first name and a remedy
    expected.loaded(tensors)["model.layers.0.self_attn.q_proj.weight"]       # by the name in the model
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from oral_ray.bases.building import config_object
from oral_ray.bases.foreign import transformers_reads
from oral_ray.bases.headers import FLOAT_DTYPES, TensorEntry
from oral_ray.bases.renaming import LoaderNames
from oral_ray.bases.storage import without_quantization
from oral_ray.errors import BaseModelError

if TYPE_CHECKING:
    from oral_ray.modalities import Kind

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "language_model.", "model.")
_COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")  # older versions saved them, every model computes them


@dataclass(frozen=True)
class ExpectedModel:
    """A transformers class, built from one config on the meta device, as the judge of a checkpoint's names."""

    model: Any
    kind: "Kind"

    @property
    def class_name(self) -> str:
        """The class that is loaded."""
        return type(self.model).__name__

    @cached_property
    def _names(self) -> LoaderNames:
        return LoaderNames(self.model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model by name, tied ones under each of their names."""
        return {name: tuple(value.shape) for name, value in self._names.meta.items()}

    def loaded(self, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        """The tensors by the names that they have in the model; those that become part of another one are left out."""
        found = {}
        for name, entry in tensors.items():
            target, pattern = self._names.target(name)
            if target in self.shapes and pattern is None:
                found[target] = entry
        return found

    def check(self, tensors: Mapping[str, TensorEntry], where: str) -> None:
        """BaseModelError unless the model gets each of its tensors from exactly one place, and uses all that lie there."""
        sources: dict[str, list[str]] = defaultdict(list)
        parts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        left_over, made = [], set()
        for name in tensors:
            target, pattern = self._names.target(name)
            if target not in self.shapes:
                left_over.append(name)
            elif pattern is None:
                sources[target].append(name)
            else:
                parts[target][pattern].append(name)
                made |= self._names.siblings(target, pattern)
        self.check_missing(self.shapes.keys() - sources.keys() - made, tensors, where)
        self._check_places(sources, parts, where)
        self._check_stored(sources, parts, tensors, where)
        self.check_left_over(left_over, where)

    def check_missing(self, missing: Iterable[str], tensors: Iterable[str], where: str) -> None:
        """BaseModelError where the model lacks a tensor that is neither tied to one that is there nor computed."""
        lost = set(missing)
        groups: dict[str, set[str]] = defaultdict(set)
        for target, source in self._names.tied.items():
            groups[source] |= {source, target}
        for group in groups.values():
            if not group <= lost:
                lost -= group
        lost = {name for name in lost if not self._is_computed(name)}
        if lost:
            first = next(name for name in self.shapes if name in lost)
            raise BaseModelError(
                f"{where} lacks {first!r}{_and_more(lost)} of the {len(self.shapes)} tensors of a {self.class_name}; "
                f"{self._remedy(lost, list(tensors))}"
            )

    def check_left_over(self, names: Iterable[str], where: str) -> None:
        """BaseModelError where the model has no use for a tensor of its own parts; heads over an encoder are let lie."""
        unused = sorted(name for name in names if not self._may_lie_unused(name))
        if unused:
            raise BaseModelError(
                f"{where} holds {unused[0]!r}{_and_more(unused)}, which a {self.class_name} of this config.json does not "
                "use; upload the config.json that belongs to the weights, or remove what is no part of the model"
            )

    def check_report(self, report: Mapping[str, Any], tensors: Iterable[str], where: str) -> None:
        """BaseModelError unless the loader found every tensor in the files, in its shape, and left none of them over.

        `report` is what `from_pretrained` says with `output_loading_info`.
        """
        for name, stored, wanted in sorted(report["mismatched_keys"]):
            raise BaseModelError(
                f"{where}: {name!r} is {tuple(stored)}, config.json says {tuple(wanted)}; upload the config.json that "
                "belongs to the weights"
            )
        self.check_missing(report["missing_keys"], tensors, where)
        self.check_left_over(report["unexpected_keys"], where)

    def _is_computed(self, name: str) -> bool:
        """A buffer that the class itself says it may do without."""
        patterns = self.model._keys_to_ignore_on_load_missing or ()
        is_buffer = name in dict(self.model.named_buffers())
        return is_buffer and any(re.search(pattern, name) for pattern in patterns)

    def _may_lie_unused(self, name: str) -> bool:
        """What the class itself passes over (prediction layers of DeepSeek, buffers of old), or a head over an encoder."""
        patterns = {*(self.model._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED}
        if any(re.search(pattern, name) for pattern in patterns):
            return True
        if not self.kind.heads_may_lie:
            return False
        bare = self._names.target(name)[0].removeprefix(f"{self.model.base_model_prefix}.")
        return bare.partition(".")[0] not in dict(self.model.named_children())

    def _check_places(
        self, sources: Mapping[str, list[str]], parts: Mapping[str, Mapping[str, list[str]]], where: str
    ) -> None:
        for target, names in sources.items():
            rivals = [*names, *(name for group in parts.get(target, {}).values() for name in group)]
            if len(rivals) > 1:
                raise BaseModelError(
                    f"{where} holds {target!r} {len(rivals)} times, as {' and '.join(map(repr, sorted(rivals)[:3]))}; "
                    "remove all but the one that is meant"
                )
        most: dict[str, int] = defaultdict(int)
        for target, groups in parts.items():
            general = re.sub(r"\.\d+\.", ".*.", target)
            most[general] = max(most[general], *(len(names) for names in groups.values()))
        for target, groups in parts.items():
            wanted = most[re.sub(r"\.\d+\.", ".*.", target)]
            for names in groups.values():
                _check_count(names, target, where)
                if len(names) < wanted:
                    raise BaseModelError(
                        f"{where} lacks parts of {target!r}: {len(names)} tensors like {names[0]!r} where there must be "
                        f"{wanted}; upload the whole checkpoint"
                    )

    def _check_stored(
        self,
        sources: Mapping[str, list[str]],
        parts: Mapping[str, Mapping[str, list[str]]],
        tensors: Mapping[str, TensorEntry],
        where: str,
    ) -> None:
        used = [*((target, names[0]) for target, names in sources.items())]
        used += [(target, name) for target, groups in parts.items() for names in groups.values() for name in names]
        for target, name in used:
            entry = tensors[name]
            if self._names.meta[target].is_floating_point() and entry.dtype not in FLOAT_DTYPES:
                raise BaseModelError(
                    f"{where}: {name!r} is stored as {entry.dtype}, which is no weight of a {self.class_name}; take the "
                    "original checkpoint, or save it as bfloat16 or float32"
                )
        for target, names in sources.items():
            shape = tensors[names[0]].shape
            if shape != self.shapes[target]:
                raise BaseModelError(
                    f"{where}: {names[0]!r} is {shape}, config.json says {self.shapes[target]}; upload the config.json "
                    "that belongs to the weights"
                )

    def _remedy(self, lost: set[str], names: list[str]) -> str:
        heads = {name for name in lost if name.startswith(("lm_head.", "embed_out.", "output."))}
        if lost == heads:
            return (
                "it is the headless model or a classifier; upload the causal language model, or set tie_word_embeddings "
                "in config.json where its head is its embedding"
            )
        start = _common_start(names)
        if start and self._fits_without(start, names):
            return f"all of its names start with {start!r}; save it without this prefix"
        if len(lost) == len(self.shapes):
            return (
                f"its tensors have other names, like {min(names)!r}; upload the checkpoint that belongs to config.json"
            )
        return "upload the whole checkpoint, with the config.json that belongs to it"

    def _fits_without(self, start: str, names: list[str]) -> bool:
        found = {self._names.target(name.removeprefix(start))[0] for name in names}
        return len(found & self.shapes.keys()) > len(found) // 2


def expected_model(config: Mapping[str, Any], kind: str, tensors: Iterable[str], where: str) -> ExpectedModel | None:
    """The class that is loaded for a config; None where no class is named for models of this kind.

    Raises BaseModelError where config.json contradicts itself or transformers refuses it.
    """
    from oral_ray.modalities import kind_named
    from oral_ray.modalities.kind import loads

    of_kind = kind_named(kind)
    if not of_kind.auto_class:
        return None
    text = json.dumps(without_quantization(config), sort_keys=True)
    with transformers_reads(f"{where}/config.json"):
        _check_named(config, where)
        own = _own(text)
        if not loads(of_kind.auto_class, own):
            return None
        options = of_kind.build_options(own, tensors)
        return _built(text, of_kind, tuple(sorted(options.items())))


def _check_count(names: Sequence[str], target: str, where: str) -> None:
    """BaseModelError unless the parts of a tensor are numbered from 0: the loader puts them together in their order."""
    numbers = zip(*(re.findall(r"\d+", name) for name in names), strict=False)
    counts = [sorted(map(int, column)) for column in numbers if len(set(column)) > 1]
    alike = len({re.sub(r"\d+", "0", name) for name in names}) == 1
    if len(names) > 1 and not (alike and counts == [list(range(len(names)))]):
        raise BaseModelError(
            f"{where}: the parts of {target!r} are not numbered from 0 to {len(names) - 1} ({min(names)!r}, "
            f"{max(names)!r}); upload the checkpoint as it was published"
        )


def _and_more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _common_start(names: list[str]) -> str:
    start = ""
    while names and (wrapper := next((w for w in _WRAPPERS if all(n.startswith(start + w) for n in names)), None)):
        start += wrapper
    return start


def _check_named(config: Mapping[str, Any], where: str) -> None:
    """BaseModelError where a config names a class of another model type; its numbers may be of either."""
    import transformers

    model_type, names = config["model_type"], config.get("architectures")
    for name in names if isinstance(names, list) else ():
        config_class = getattr(getattr(transformers, str(name), None), "config_class", None)
        named = getattr(config_class, "model_type", None) or model_type
        if named.replace("_", "-") != model_type.replace("_", "-"):
            raise BaseModelError(
                f"{where}: config.json says model_type {model_type!r} and architectures {name!r}, which is a {named!r}; "
                "correct whichever is wrong"
            )


@lru_cache(maxsize=32)
def _own(config_text: str) -> Any:
    return config_object(json.loads(config_text))


@lru_cache(maxsize=32)
def _built(config_text: str, kind: "Kind", options: tuple[tuple[str, Any], ...]) -> ExpectedModel:
    import torch
    import transformers

    auto = getattr(transformers, kind.auto_class)
    with torch.device("meta"):
        model = auto.from_config(_own(config_text), trust_remote_code=False, **dict(options))
    return ExpectedModel(model, kind)
