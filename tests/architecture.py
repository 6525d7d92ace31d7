"""The rules of the house as functions over a source root, so that a test can plant a violation and see it found.

`violations(root)` reads `oral_ray/`, `jobs/` and `serve/` below a root by `ast` and returns one sentence per violation.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reaching import loads, paths_out, unseen_loads

# From the ground up. A room imports from floors below its own and from itself, never sideways.
FLOORS = (
    ("errors",),
    ("version", "local"),
    ("tasks", "config"),
    ("objects", "modalities"),
    ("bases", "cluster"),
    ("adapters",),
    ("generator",),
    ("store", "client"),
    ("generation", "plugins"),
    ("pipeline", "bench"),
    ("evaluation",),
    ("nightly",),
    ("study",),
    ("cli",),
    ("jobs", "serve"),
)
SOLE_IMPORTERS = {
    "ray": ("oral_ray/cluster/", "jobs/", "serve/"),
    "mamba_ssm": ("oral_ray/generator/ssm.py",),
    "triton": ("oral_ray/generator/ssm.py",),
    "deepspeed": ("oral_ray/generator/zero.py",),
    "boto3": ("oral_ray/objects/s3.py", "oral_ray/bases/events.py", "oral_ray/bench/store.py"),
    "peft": ("oral_ray/adapters/",),
    "diffusers": ("oral_ray/bases/building.py", "oral_ray/adapters/export.py"),
    "matplotlib": ("oral_ray/evaluation/report/figures.py",),
    "httpx": ("oral_ray/client/client.py",),
    "model_signing": ("oral_ray/store/signing.py",),
    "vllm": ("oral_ray/plugins/vllm.py",),
}
KINDS = (
    "encoder", "causal", "image-text", "encoder-decoder", "vision", "audio", "unet", "diffusion-transformer",
)  # fmt: skip
"""The kinds of base. Only oral_ray/modalities may ask for one; elsewhere a kind's object is asked what it can do."""
JUNK_DRAWERS = {"utils", "util", "helpers", "common", "manager", "misc"}
MAX_JOB_LINES = 120
MODULES = {"errors", "version"}
"""Modules at the top of the package: they stand on floors as rooms do, and are not counted as rooms."""
MAX_ROOMS = 8
MAX_PARAMETERS = 7
WIDE_FUNCTIONS = {
    "oral_ray/adapters/lora.py:train_adapter": 8,
    "oral_ray/cluster/training.py:run_workers": 8,
}
"""Functions of more than `MAX_PARAMETERS`, and how many they have at most: make it a dataclass and a method, add none."""
RECORD = "oral_ray/local/record.py"
_FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True, slots=True)
class Source:
    """One module: its path below the root, its dotted name, its syntax tree."""

    path: str
    name: str
    tree: ast.Module
    num_lines: int

    @property
    def package(self) -> str:
        """The package that relative imports of this module start from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    @property
    def room(self) -> str:
        """`bases` for oral_ray.bases.spec, `jobs` for jobs.train, empty for oral_ray itself."""
        parts = self.name.split(".")
        return parts[0] if parts[0] != "oral_ray" else "".join(parts[1:2])


def read_sources(root: Path) -> dict[str, Source]:
    """All modules below a root by dotted name."""
    sources = {}
    for top in ("oral_ray", "jobs", "serve"):
        for path in sorted((root / top).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            inside = path.relative_to(root)
            name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            sources[name] = Source(inside.as_posix(), name, ast.parse(text), len(text.splitlines()))
    return sources


def imported(source: Source) -> Iterator[tuple[str, ...]]:
    """Every import as the names it may mean, most specific first: `from a import b` is a.b or a.

    A module that a call loads counts as one; `a.*` is any module below a.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)
    yield from ((name,) for name in loads(source.tree, source.package))


def edges(sources: Mapping[str, Source]) -> dict[str, set[str]]:
    """Which of our modules each of our modules imports.

    A registry that loads the files of its own folder by name is no importer of them: they import it.
    """
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        graph[name] = set()
        for names in imported(source):
            if names[0].endswith(".*"):
                start = names[0][:-1]
                if start != f"{source.package}.":
                    graph[name] |= {other for other in sources if other.startswith(start)}
            elif known := next((candidate for candidate in names if candidate in sources), None):
                graph[name].add(known)
    return graph


def rooms(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Which other rooms each room imports; `MODULES` are none."""
    found: dict[str, set[str]] = {
        source.room: set() for source in sources.values() if source.room not in {"", *MODULES}
    }
    for name, targets in graph.items():
        if (room := sources[name].room) in found:
            found[room] |= {sources[target].room for target in targets} & found.keys() - {room}
    return found


def violations(root: Path) -> list[str]:
    """One sentence for everything below a root that breaks a rule of the house."""
    sources = read_sources(root)
    graph = edges(sources)
    return [sentence for rule in RULES.values() for sentence in rule(sources, graph)]


def _floors(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for name, source in sources.items():
        if source.room and source.room not in _FLOOR_OF:
            yield f"{source.path}: room {source.room!r} stands on no floor"
            continue
        for target in sorted(graph[name]):
            other = sources[target].room
            if other in ("", source.room) or other not in _FLOOR_OF:
                continue
            if not source.room or _FLOOR_OF[other] >= _FLOOR_OF[source.room]:
                yield f"{source.path}: {source.room or 'oral_ray'} imports {target}, which is not on a floor below"


def _circles(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for cycle in cycles(graph):
        yield f"the modules {' -> '.join(cycle)} import each other in a cycle"


def cycles(graph: Mapping[str, set[str]]) -> Iterator[tuple[str, ...]]:
    """Modules that import each other, each circle as its modules in order, the first once more at the end."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in trail:
            yield (*trail[trail.index(name) :], name)
        elif name not in done:
            for target in sorted(graph[name]):
                yield from visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        yield from visit(name, ())


def _breadth(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for room, others in rooms(sources, graph).items():
        if len(others) > MAX_ROOMS:
            yield f"room {room} imports {len(others)} others, at most {MAX_ROOMS} are allowed: {', '.join(sorted(others))}"


def _top(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        is_top = re.fullmatch(r"oral_ray/\w+\.py", source.path) and source.name != "oral_ray"
        if is_top and source.room not in MODULES:
            yield f"{source.path}: a loose module at the top of the package; put it into a room"


def _loads(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        yield from (f"{source.path}: {what}" for what in unseen_loads(source.tree, source.package))


def _paths(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        if source.path.startswith("oral_ray/"):
            yield from (f"{source.path}: {what}" for what in paths_out(source.tree, source.path.count("/")))


def _sole_importers(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        for package in sorted({names[-1].split(".")[0] for names in imported(source)} & SOLE_IMPORTERS.keys()):
            if not source.path.startswith(SOLE_IMPORTERS[package]):
                yield f"{source.path}: imports {package}, which only {', '.join(SOLE_IMPORTERS[package])} may"


def _kinds(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        if source.room == "modalities":
            continue
        for node in ast.walk(source.tree):
            for kind in sorted({constant for part in _asked(node) for constant in _kinds_in(part)}):
                yield f"{source.path}: line {_line(node)} asks for the kind of base {kind!r}, which only modalities may"


def _asked(node: ast.AST) -> list[ast.expr]:
    """What a node compares with, looks up by, or hands to a call."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.MatchValue):
        return [node.value]
    if isinstance(node, ast.Dict):
        return [key for key in node.keys if key is not None]
    if isinstance(node, ast.Call):
        return [*node.args, *(keyword.value for keyword in node.keywords)]
    return []


def _kinds_in(part: ast.expr) -> set[str]:
    """The kinds that an expression, or a tuple, list or set of them, spells out."""
    parts = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
    return {each.value for each in parts if isinstance(each, ast.Constant) and each.value in KINDS}


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", None) or node.value.lineno  # type: ignore[attr-defined]


def _names(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        if JUNK_DRAWERS & set(source.name.split(".")):
            yield f"{source.path}: a junk-drawer name"


def _job_lengths(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        if source.room == "jobs" and source.num_lines > MAX_JOB_LINES:
            yield f"{source.path}: {source.num_lines} lines, a job has at most {MAX_JOB_LINES}"


def _read_fields(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for name in unread_config_fields(sources):
        yield f"config field {name} is read nowhere"


def unread_config_fields(sources: Mapping[str, Source]) -> list[str]:
    """`Section.field` for every field of the configuration that no code reads as an attribute."""
    read = {
        node.attr
        for source in sources.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    config = [node for source in sources.values() if source.room == "config" for node in source.tree.body]
    classes = [node for node in config if isinstance(node, ast.ClassDef)]
    fields = [
        (cls.name, item.target.id)
        for cls in classes
        for item in cls.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    return [f"{cls}.{field}" for cls, field in fields if field != "kind" and field not in read]


def _parameters(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source in sources.values():
        for name, number in parameter_counts(source):
            most = WIDE_FUNCTIONS.get(f"{source.path}:{name}", MAX_PARAMETERS)
            if number > most:
                yield f"{source.path}: {name} has {number} parameters, at most {most} are allowed; make it a dataclass"


def parameter_counts(source: Source) -> Iterator[tuple[str, int]]:
    """Every function of a module with the number of its parameters, `self` and `cls` aside."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            yield node.name, len([name for name in names if name not in ("self", "cls")])


def _records(sources: Mapping[str, Source], graph: Mapping[str, set[str]]) -> Iterator[str]:
    strict = {"frozen": True, "extra": "forbid"}
    for source in sources.values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and source.path != RECORD:
                given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                if given.items() >= strict.items():
                    yield f"{source.path}: line {node.lineno} spells out what a Record is; derive from it ({RECORD})"


RULES: dict[str, Callable[[Mapping[str, Source], Mapping[str, set[str]]], Iterator[str]]] = {
    "floors": _floors,
    "circles": _circles,
    "breadth": _breadth,
    "top": _top,
    "loads": _loads,
    "paths": _paths,
    "sole importers": _sole_importers,
    "kinds": _kinds,
    "names": _names,
    "job lengths": _job_lengths,
    "read fields": _read_fields,
    "parameters": _parameters,
    "records": _records,
}
"""The rules of the house; each yields one sentence per violation."""
