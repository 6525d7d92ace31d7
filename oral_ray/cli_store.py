"""What reads and keeps a store: `oral-ray {pull,list}`, `store {gc,fsck}`, `release {show,alias,rollback,diff}`."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oral_ray.errors import ConfigError


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

    command = add(release, "show", _show, "Show a release as JSON.")
    command.add_argument("base", help="base id")
    command.add_argument("which", nargs="?", default="latest", help="number or alias (default latest)")
    command = add(release, "alias", _alias, "Let an alias (prod, ...) mean a release.")
    command.add_argument("base", help="base id")
    command.add_argument("name", help="alias")
    command.add_argument("which", help="number or alias")
    command.add_argument("--published", default="published", help="prefix of the serving view (default published)")
    text = "PEM file: only when every adapter of the release was signed by this key"
    command.add_argument("--public-key", type=Path, metavar="FILE", help=text)
    command = add(release, "rollback", _roll_back, "Let an alias mean the release before its own again.")
    command.add_argument("base", help="base id")
    command.add_argument("name", help="alias")
    command = add(release, "diff", _diff, "Show what changed between two releases of a base.")
    command.add_argument("base", help="base id")
    command.add_argument("old", help="number or alias")
    command.add_argument("new", help="number or alias")


def _pull(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_objects
    from oral_ray.store.adapters import AdapterStore

    store, is_published = AdapterStore(open_objects(args.store)), "/" in args.adapter
    if args.public_key and not is_published:
        raise ConfigError(f"only published adapters are signed; give BASE/ADAPTER_ID instead of {args.adapter!r}")
    digest = _releases(args).digest_of(args.adapter) if is_published else args.adapter
    if args.public_key:
        show(str(store.pull_published(f"{args.published}/{args.adapter}", digest, args.folder, args.public_key)))
    else:
        show(str(store.pull(digest, args.folder)))


def _list(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    releases = _releases(args)
    latest = {base: release for base in releases.bases() if (release := releases.latest(base)) is not None}
    if args.json:
        show(json.dumps({base: release.model_dump(mode="json") for base, release in latest.items()}))
        return
    for base, release in latest.items():
        show(f"{base}  release {releases.sequence(base)[-1]}  generator {release.generator[:12]}")
        for adapter in release.adapters:
            show(f"  {adapter.adapter_id:44} {adapter.arm:12} validation {adapter.score:.3f}  {adapter.uri}")
    if not latest:
        show(f"no releases in {args.store}; run jobs/regenerate.py")


def _collect(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_objects
    from oral_ray.store.garbage import collect, plan_collection

    if args.keep_releases is not None and args.keep_releases < 1:
        raise ConfigError(f"--keep-releases is {args.keep_releases}, at least the latest release must be kept")
    objects = open_objects(args.store)
    units = plan_collection(objects, args.grace_h * 3600, args.published, args.keep_releases)
    for unit in units:
        show(f"{unit.name}  {unit.num_bytes:,} bytes: {unit.reason}")
    total = f"{len(units)} things, {sum(unit.num_bytes for unit in units):,} bytes"
    show(f"deleted {total} ({collect(objects, units)} objects)" if args.delete else f"{total}; --delete removes them")


def _check(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_objects
    from oral_ray.store.fsck import find_faults

    faults = list(find_faults(open_objects(args.store), args.published, args.public_key))
    for fault in faults:
        show(fault)
    show(f"{len(faults)} faults in {args.store}" if faults else f"{args.store} is whole")
    if faults:
        raise SystemExit(1)


def _show(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    releases = _releases(args)
    show(releases.get(args.base, _number(releases, args.base, args.which)).model_dump_json(indent=1))


def _alias(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.objects import open_objects
    from oral_ray.store.adapters import AdapterStore

    releases = _releases(args)
    seq = _number(releases, args.base, args.which)
    if args.public_key:
        store = AdapterStore(open_objects(args.store))
        for adapter in releases.get(args.base, seq).adapters:
            where = f"{args.published}/{args.base}/{adapter.adapter_id}"
            store.check_published(where, adapter.digest, args.public_key)
    releases.set_alias(args.base, args.name, seq)
    show(f"{args.name} of {args.base} is release {seq}")


def _roll_back(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    show(f"{args.name} of {args.base} is release {_releases(args).roll_back(args.base, args.name)}")


def _diff(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    releases = _releases(args)
    numbers = [_number(releases, args.base, which) for which in (args.old, args.new)]
    for line in releases.diff(args.base, *numbers) or ["no adapter changed"]:
        show(line)


def _releases(args: argparse.Namespace) -> Any:
    from oral_ray.objects import open_objects
    from oral_ray.store.releases import ReleaseStore

    return ReleaseStore(open_objects(args.store))


def _number(releases: Any, base_id: str, which: str) -> int:
    from oral_ray.errors import ReleaseError

    number = int(which) if which.isdigit() else releases.alias(base_id, which)
    if number not in releases.sequence(base_id):
        raise ReleaseError(
            f"base {base_id!r} has no release {which!r}; there are {releases.sequence(base_id) or 'none'}"
        )
    return number
