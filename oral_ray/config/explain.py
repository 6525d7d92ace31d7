"""The configuration as a reader sees it: the resolved tree as TOML lines, and what one key means.

print(resolved_toml(config))                    # training.steps = 200 ...
print(explained("training.engine.zero_stage"))  # description, type, default
"""

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from oral_ray.config.section import Section
from oral_ray.config.tree import Config
from oral_ray.errors import ConfigError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def resolved_toml(config: Config) -> str:
    """Every key with its value, one line each: a complete configuration file.

    TOML has no null, so keys that are unset stand at the end as comments.
    """
    leaves = dict(_leaves(config.model_dump(mode="json"), ""))
    lines = [f"{key} = {_toml(value)}" for key, value in leaves.items() if value is not None]
    unset = [key for key, value in leaves.items() if value is None]
    return "\n".join([*lines, *(f"# {key} is not set" for key in sorted(unset))])


def explained(key: str) -> str:
    """What a key means: description, type, default; the keys below it where it is a section.

    Raises ConfigError for an unknown key and names the ones that are like it.
    """
    found: dict[str, list[tuple[str, FieldInfo]]] = {}
    for name, kind, field in described_fields():
        found.setdefault(name, []).append((kind, field))
    if key not in found:
        near = difflib.get_close_matches(key, found, n=3, cutoff=0.5)
        raise ConfigError(f"unknown configuration key {key!r}; did you mean {', '.join(near) or 'one of config show'}?")
    below = [other for other in found if other.startswith(f"{key}.") and "." not in other.removeprefix(f"{key}.")]
    if below:
        lines = [f"  {other}{_of(kind)}: {field.description}" for other in below for kind, field in found[other]]
        return "\n".join([key, f"  {found[key][0][1].description}", "", *lines])
    lines = [key]
    for kind, field in found[key]:
        default = "none, it must be given" if field.is_required() else _toml(_plain(field.get_default()))
        lines += [
            f"  {field.description}{_of(kind)}",
            f"  type: {_type_text(field.annotation)}",
            f"  default: {default}",
        ]
    return "\n".join(lines)


def _of(kind: str) -> str:
    return f" (kind {kind})" if kind else ""


def described_fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Every key of the tree, the kind of a choice that has it (else empty), its field.

    An entry of a list stands for all of them: `bases.versions.id`. A key that several kinds of a choice have comes once
    for each: `generator.width` of `tokens` and of `latent`.
    """
    yield from _fields(Config, "", "")


def _fields(section: type[Section], prefix: str, kind: str) -> Iterator[tuple[str, str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield prefix + name, kind, field
        options = list(_sections(field.annotation))
        for option in options:
            own = option.model_fields["kind"].default if len(options) > 1 else kind
            yield from (
                found for found in _fields(option, f"{prefix}{name}.", own) if found[0] != f"{prefix}{name}.kind"
            )
        if len(options) > 1:  # a choice: its `kind` says which of them
            yield f"{prefix}{name}.kind", kind, _choice([option.model_fields["kind"] for option in options])


def _choice(kinds: list[FieldInfo]) -> FieldInfo:
    names: Any = Literal[tuple(kind.default for kind in kinds)]  # type: ignore[valid-type]
    text = " ".join(f"`{kind.default}`: {kind.description}" for kind in kinds)
    return FieldInfo(annotation=names, default=kinds[0].default, description=text)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for option in get_args(annotation):
        yield from _sections(option)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = prefix + (name if _BARE_KEY.fullmatch(name) else json.dumps(name))
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items() if item is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def _type_text(annotation: Any) -> str:
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(options[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, options))
    if origin in (Union, types.UnionType):
        return " or ".join("none" if option is type(None) else _type_text(option) for option in options)
    if origin is tuple:
        return f"list of {_type_text(options[0])}"
    if origin is dict:
        return f"table of {_type_text(options[1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
