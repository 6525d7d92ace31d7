"""What a module reaches for without an import statement: modules that it loads by name, files that it names by path.

`loads(source)` are the modules that a call loads, `unseen_loads` the calls that hide which, `paths_out` the paths by which
a module of the library leaves the library.
"""

import ast
import re
from collections.abc import Iterator

BY_NAME = {"import_module", "__import__", "run_module", "resolve_name"}
BY_FILE = {"run_path", "spec_from_file_location", "SourceFileLoader"}
OUTSIDE = ("jobs", "serve", "docs", "tests", "infra")
"""Folders of the repository that an installed library does not have, or stands below."""

_TAKE_PATHS = {"Path", "PurePath", "PosixPath", "PurePosixPath", "open", "joinpath", "join", "glob", "rglob", "chdir"}
_FOLDERS = "|".join(OUTSIDE)
_UPWARDS = r"(?:\.{0,2}/)*"
_A_PATH = re.compile(rf"{_UPWARDS}(?:docs/\S*|(?:{_FOLDERS})/\S*\.\w+|jobs(?:\.\w+)+)")
_BEGINS_OUTSIDE = re.compile(rf"{_UPWARDS}(?:{_FOLDERS})(?:/|$)")
_HOLE = "0"  # stands for `{...}` of an f-string


def loads(tree: ast.Module, package: str) -> Iterator[str]:
    """The dotted names of the modules that calls load; `a.b.*` where only the beginning of the name stands there."""
    for call in _loading_calls(tree, BY_NAME):
        if name := _name_of(call, package):
            yield name


def unseen_loads(tree: ast.Module, package: str) -> Iterator[str]:
    """What is wrong with calls that load a module without saying which, or run a file."""
    known = {id(call.func) for call in _loading_calls(tree, BY_NAME)}
    for call in _loading_calls(tree, BY_NAME):
        if not _name_of(call, package):
            yield f"line {call.lineno} loads a module by a computed name; write its room out"
    for node in ast.walk(tree):
        name = _own_name(node)
        if name in BY_FILE:
            yield f"line {node.lineno} runs a file by its path ({name}); import the module"  # type: ignore[attr-defined]
        elif name in BY_NAME and id(node) not in known:
            yield f"line {node.lineno} hands {name} on; call it with a name"  # type: ignore[attr-defined]
        elif isinstance(node, ast.Constant) and node.value in BY_NAME | BY_FILE:
            yield f"line {node.lineno} looks {node.value} up by its name; call it"


def paths_out(tree: ast.Module, depth: int) -> Iterator[str]:
    """The paths that leave the library: into `OUTSIDE`, or above the package by `__file__`.

    `depth` is how many folders deep the module lies: 1 for oral_ray/version.py.
    """
    no_paths = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for call in _loading_calls(tree, BY_NAME):  # what they load is an import
        no_paths |= {id(given) for given in (*call.args, *(word.value for word in call.keywords))}
    found: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            no_paths |= {id(part) for part in node.values}  # it is looked at as a whole
        if id(node) not in no_paths and (text := _text(node)) and _A_PATH.fullmatch(text):
            found.setdefault(node.lineno, f"{text.replace(_HOLE, '...')!r}")  # type: ignore[attr-defined]
        for part in _parts_of_paths(node):
            if (text := _text(part)) and _BEGINS_OUTSIDE.match(text):
                found.setdefault(part.lineno, repr(text))
        if _climb(node) > depth:
            found.setdefault(node.lineno, "what lies beside the package, by __file__")  # type: ignore[attr-defined]
    for line, what in sorted(found.items()):
        yield f"line {line} reaches out of the library for {what}; take it as a parameter"


def _loading_calls(tree: ast.Module, names: set[str]) -> Iterator[ast.Call]:
    other_names = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name in names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _own_name(node.func) in names | other_names:
            yield node


def _own_name(node: ast.AST) -> str:
    """`b` of `b` and of `a.b`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _name_of(call: ast.Call, package: str) -> str:
    """The module that a call loads, `a.b.*` for one below `a.b`; empty where its room does not stand there."""
    given = {word.arg: word.value for word in call.keywords}
    named = call.args[0] if call.args else given.get("name", given.get("mod_name"))
    if named is None:
        return ""
    if isinstance(named, ast.Constant):
        name = str(named.value).partition(":")[0]
        return _absolute(name, package) if name.startswith(".") else name
    start, _, _ = _text(named).partition(_HOLE)
    if isinstance(named, ast.JoinedStr) and ast.unparse(named).startswith(("f'{__package__}.", 'f"{__package__}.')):
        start = f"{package}."
    start = _absolute(start, package) if start.startswith(".") else start
    is_known = start.endswith(".") and (start.count(".") > 1 or not start.startswith("oral_ray."))
    return f"{start}*" if is_known else ""


def _absolute(name: str, package: str) -> str:
    bare = name.lstrip(".")
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - (len(name) - len(bare)) + 1], bare])


def _text(node: ast.AST) -> str:
    """A string as it stands in the code, with a hole for what is computed; empty where it does not begin as text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return start + (_text(node.right) or _HOLE) if (start := _text(node.left)) else ""
    return ""


def _parts_of_paths(node: ast.AST) -> Iterator[ast.expr]:
    """What is taken as a path or a part of one: arguments of `Path`, `open`, ..., both sides of `/`."""
    if isinstance(node, ast.Call) and _own_name(node.func) in _TAKE_PATHS:
        yield from node.args
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        yield from (node.left, node.right)


def _climb(node: ast.AST) -> int:
    """How many folders up from `__file__` an expression goes, 0 for anything else: `Path(__file__).parents[1]` is 2."""
    if isinstance(node, ast.Attribute) and node.attr == "parent":
        return _up(node.value, 1)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "parents":
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return _up(node.value.value, index + 1 if isinstance(index, int) else 99)
    if isinstance(node, ast.Call) and _own_name(node.func) == "dirname" and node.args:
        return _up(node.args[0], 1)
    return 0


def _up(node: ast.AST, steps: int) -> int:
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr != "dirname":
        node = node.func.value  # .resolve(), .absolute()
    if isinstance(node, ast.Name) and node.id == "__file__":
        return steps
    if isinstance(node, ast.Call) and _own_name(node.func) == "Path" and node.args:
        return steps if _own_name(node.args[0]) == "__file__" else 0
    inner = _climb(node)
    return inner + steps if inner else 0
