"""What reads and keeps a store: `oral-ray {pull,list}`, `store {gc,fsck}`, `release {show,alias,rollback,diff}`."""

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oral_ray.errors import ConfigError, ReleaseError

logger = logging.getLogger(__name__)


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
    from oral_ray.objects import open_existing
    from oral_ray.store.adapters import AdapterStore
    from oral_ray.store.releases import ReleaseStore

    objects, is_published = open_existing(args.store), "/" in args.adapter
    store = AdapterStore(objects)
    if args.public_key and not is_published:
        raise ConfigError(f"only published adapters are signed; give BASE/ADAPTER_ID instead of {args.adapter!r}")
    digest = ReleaseStore(objects).digest_of(args.adapter) if is_published else args.adapter
    if args.public_key:
        show(str(store.pull_published(f"{args.published}/{args.adapter}", digest, args.folder, args.public_key)))
    else:
        show(str(store.pull(digest, args.folder)))


def _list(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_existing
    from oral_ray.store.releases import ReleaseStore

    objects = open_existing(args.store)
    releases = ReleaseStore(objects)
    latest = []
    for base, name in [(of, name) for of in releases.bases() for name in releases.names(of)]:
        seq = releases.sequence(base, name)[-1]
        try:
            latest.append((base, name, seq, releases.get(base, name, seq)))
        except ReleaseError as error:  # the others are listed
            logger.error("%s", error)
    if args.json:
        found: dict[str, dict[str, Any]] = {}
        for base, name, seq, release in latest:
            found.setdefault(base, {})[name] = release.shown(objects.uri) | {"sequence": seq}
        show(json.dumps(found))
        return
    for base, name, seq, release in latest:
        show(f"{base}  {name}  release {seq}  generator {release.generator[:12]}")
        for adapter in release.adapters:
            uri = adapter.uri_in(objects.uri)
            show(f"  {adapter.adapter_id:44} {adapter.arm:12} validation {adapter.score:.3f}  {uri}")
    if not latest:
        show(f"no releases in {args.store}; run jobs/regenerate.py")


def _collect(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_existing
    from oral_ray.store.garbage import collect, plan_collection

    if args.keep_releases is not None and args.keep_releases < 1:
        raise ConfigError(f"--keep-releases is {args.keep_releases}, at least the latest release must be kept")
    objects = open_existing(args.store)
    units = plan_collection(objects, args.grace_h * 3600, args.published, args.keep_releases)
    for unit in units:
        show(f"{unit.name}  {unit.num_bytes:,} bytes: {unit.reason}")
    total = f"{len(units)} things, {sum(unit.num_bytes for unit in units):,} bytes"
    show(
        f"deleted {total} ({collect(objects, units, args.published)} objects)"
        if args.delete
        else f"{total}; --delete removes them"
    )


def _check(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_existing
    from oral_ray.store.fsck import find_faults

    objects = open_existing(args.store)
    faults = list(find_faults(objects, args.published, args.public_key))
    for fault in faults:
        show(fault)
    if faults:
        show(f"{len(faults)} faults in {args.store}")
        raise SystemExit(1)
    is_empty = next(iter(objects.list()), None) is None
    show(f"{args.store} is {'empty: nothing is stored there' if is_empty else 'whole'}")


def _show(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    releases, store_uri = _releases(args)
    found = []
    for name in [args.name] if args.name else releases.names(args.base):
        number = int(args.which) if args.which.isdigit() else releases.alias(args.base, name, args.which)
        if number in releases.sequence(args.base, name):
            found.append(releases.get(args.base, name, number))
    if not found and args.name:
        _name(releases, args)  # says which names there are where this is none of them
    if not found:
        raise ReleaseError(_no_release(releases, args.base, args.which))
    for release in found:
        show(json.dumps(release.shown(store_uri), indent=1))


def _alias(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_existing
    from oral_ray.store.adapters import AdapterStore

    releases, _ = _releases(args)
    name = _name(releases, args)
    seq = _number(releases, args.base, name, args.which)
    if args.public_key:
        store = AdapterStore(open_existing(args.store))
        for adapter in releases.get(args.base, name, seq).adapters:
            where = f"{args.published}/{args.base}/{adapter.adapter_id}"
            store.check_published(where, adapter.digest, args.public_key)
    releases.set_alias(args.base, name, args.alias, seq)
    show(f"{args.alias} of {args.base} is release {seq} of {name}")


def _roll_back(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    releases, _ = _releases(args)
    name = _name(releases, args)
    seq = releases.roll_back(args.base, name, args.alias)
    show(f"{args.alias} of {args.base} is release {seq} of {name}")


def _diff(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    releases, _ = _releases(args)
    name = _name(releases, args)
    numbers = [_number(releases, args.base, name, which) for which in (args.old, args.new)]
    for line in releases.diff(args.base, name, *numbers) or ["no adapter changed"]:
        show(line)


def _releases(args: argparse.Namespace) -> tuple[Any, str]:
    """The releases of the store, and its uri."""
    from oral_ray.objects import open_existing
    from oral_ray.store.releases import ReleaseStore

    objects = open_existing(args.store)
    return ReleaseStore(objects), objects.uri


def _name(releases: Any, args: argparse.Namespace) -> str:
    """The name that is meant: the given one, or the only one that the base has."""
    names = releases.names(args.base)
    if args.name in names or (args.name is None and len(names) == 1):
        return args.name or names[0]
    if args.name is None and names:
        raise ReleaseError(f"base {args.base!r} has releases of {', '.join(names)}; say which with --name")
    wanted = f" of {args.name!r}" if args.name else ""
    raise ReleaseError(f"base {args.base!r} has no release{wanted}; there are {', '.join(names) or 'none'}")


def _number(releases: Any, base_id: str, name: str, which: str) -> int:
    number = int(which) if which.isdigit() else releases.alias(base_id, name, which)
    if number not in releases.sequence(base_id, name):
        raise ReleaseError(_no_release(releases, base_id, which))
    return number


def _no_release(releases: Any, base_id: str, which: str) -> str:
    known = "; ".join(f"{name}: {releases.sequence(base_id, name)}" for name in releases.names(base_id))
    return f"base {base_id!r} has no release {which!r}; there are {known or 'none'}"
