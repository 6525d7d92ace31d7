"""What reads and keeps a store: `oral-ray {pull,list}`, `store {gc,fsck}`, `release {show,alias,rollback,diff}`."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oral_ray.store.operations import StoreOperations


def add_store_commands(commands: Any, show: Callable[[str], None]) -> None:
    """Add the commands to a parser's sub-commands; `show` prints a line."""
    store = commands.add_parser("store", help="Look after an object store.").add_subparsers(
        required=True, metavar="VERB"
    )
    release = commands.add_parser("release", help="Releases, aliases.").add_subparsers(required=True, metavar="VERB")

    def add(group: Any, name: str, call: Callable[[argparse.Namespace, Callable[[str], None]], None], text: str) -> Any:
        command = group.add_parser(name, help=text, description=text)
        command.set_defaults(call=lambda args: call(args, show))
        command.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="log everything")
        default = os.environ.get("ORAL_STORE", "./oral-store")
        command.add_argument("--store", default=default, help=f"store uri (default {default})")
        return command

    command = add(commands, "pull", _pull, "Copy an adapter from the store to a folder, digest checked.")
    command.add_argument("adapter", help="digest, or BASE/ADAPTER_ID of a published adapter")
    command.add_argument("folder", type=Path, help="target folder")
    command.add_argument("--published", default="published", help="prefix of the serving view (default published)")
    text = "PEM file: refuse a published adapter that was not signed by this key"
    command.add_argument("--public-key", type=Path, metavar="FILE", help=text)
    command = add(commands, "list", _list, "List the latest release of every base and its published adapters.")
    command.add_argument("--json", action="store_true", help="print one JSON object")

    command = add(store, "gc", _collect, "List what nothing names any more; --delete removes it.")
    command.add_argument("--delete", action="store_true", help="delete it (default: only list it)")
    command.add_argument("--grace-h", type=float, default=24.0, help="leave what is younger, in hours (default 24)")
    command.add_argument("--published", default="published", help="prefix of the serving view (default published)")
    text = "keep only so many of a base's newest releases, and those an alias has meant (default: all)"
    command.add_argument("--keep-releases", type=int, metavar="N", help=text)
    command = add(store, "fsck", _check, "Read everything, compare digests and references; exit code 1 for a fault.")
    command.add_argument("--published", default="published", help="prefix of the serving view (default published)")
    text = "PEM file: a released adapter that was not signed by this key is a fault"
    command.add_argument("--public-key", type=Path, metavar="FILE", help=text)

    def add_release(name: str, call: Callable[[argparse.Namespace, Callable[[str], None]], None], text: str) -> Any:
        command = add(release, name, call, text)
        command.add_argument("base", help="base id")
        command.add_argument(
            "--name", help="whose releases: the name of a configuration (needed where several have one)"
        )
        return command

    command = add_release("show", _show, "Show a release as JSON; without --name one of every name that has it.")
    command.add_argument("which", nargs="?", default="latest", help="number or alias (default latest)")
    command = add_release("alias", _alias, "Let an alias (prod, ...) mean a release.")
    command.add_argument("alias", help="alias")
    command.add_argument("which", help="number or alias")
    command.add_argument("--published", default="published", help="prefix of the serving view (default published)")
    text = "PEM file: only when every adapter of the release was signed by this key"
    command.add_argument("--public-key", type=Path, metavar="FILE", help=text)
    command = add_release("rollback", _roll_back, "Let an alias mean the release before its own again.")
    command.add_argument("alias", help="alias")
    command = add_release("diff", _diff, "Show what changed between two releases of a base.")
    command.add_argument("old", help="number or alias")
    command.add_argument("new", help="number or alias")


def _pull(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    show(str(_opened(args).pull(args.adapter, args.folder, args.public_key)))


def _list(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    store = _opened(args)
    latest = store.latest_releases()
    if args.json:
        found: dict[str, dict[str, Any]] = {}
        for base_id, name, number, release in latest:
            found.setdefault(base_id, {})[name] = release.shown(store.uri) | {"sequence": number}
        show(json.dumps(found))
        return
    for base_id, name, number, release in latest:
        show(f"{base_id}  {name}  release {number}  generator {release.generator[:12]}")
        for adapter in release.adapters:
            uri = adapter.uri_in(store.uri)
            show(f"  {adapter.adapter_id:44} {adapter.arm:12} validation {adapter.score:.3f}  {uri}")
    if not latest:
        show(f"no releases in {args.store}; run jobs/regenerate.py")


def _collect(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    store = _opened(args)
    units = store.garbage(args.grace_h * 3600, args.keep_releases)
    for unit in units:
        show(f"{unit.name}  {unit.num_bytes:,} bytes: {unit.reason}")
    total = f"{len(units)} things, {sum(unit.num_bytes for unit in units):,} bytes"
    show(f"deleted {total} ({store.delete(units)} objects)" if args.delete else f"{total}; --delete removes them")


def _check(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    store = _opened(args)
    faults = list(store.faults(args.public_key))
    for fault in faults:
        show(fault)
    if faults:
        show(f"{len(faults)} faults in {args.store}")
        raise SystemExit(1)
    show(f"{args.store} is {'empty: nothing is stored there' if store.is_empty() else 'whole'}")


def _show(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    store = _opened(args)
    for release in store.releases(args.base, args.which, args.name):
        show(json.dumps(release.shown(store.uri), indent=1))


def _alias(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    name, number = _opened(args).set_alias(args.base, args.name, args.alias, args.which, args.public_key)
    show(f"{args.alias} of {args.base} is release {number} of {name}")


def _roll_back(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    name, number = _opened(args).roll_back(args.base, args.name, args.alias)
    show(f"{args.alias} of {args.base} is release {number} of {name}")


def _diff(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    for line in _opened(args).diff(args.base, args.name, args.old, args.new) or ["no adapter changed"]:
        show(line)


def _opened(args: argparse.Namespace) -> "StoreOperations":
    from oral_ray.store.operations import StoreOperations

    return StoreOperations(args.store, getattr(args, "published", "published"))
