"""`oral-ray config show` and `oral-ray config explain`."""

import argparse
from collections.abc import Callable
from typing import Any

from oral_ray.config import Config
from oral_ray.config.explain import explained, resolved_toml


def add_config_commands(
    commands: Any, echo: Callable[[str], None], arguments: Callable[..., None],
    resolve: Callable[[argparse.Namespace], Config],
) -> None:  # fmt: skip
    """Add the group `config`; `arguments` adds --config and overrides to a parser, `resolve` reads them."""
    group = commands.add_parser("config", help="Print the resolved configuration, or explain one key.")
    actions = group.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, call: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(call=call)
        action.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="log everything")
        return action

    show = add("show", lambda args: echo(resolved_toml(resolve(args))), "Print every key with its value, as TOML.")
    arguments(show, verbose=False)
    explain = add("explain", lambda args: echo(explained(args.key)), "Say what a key means, its type and its default.")
    explain.add_argument("key", help="a key such as training.steps, or a section such as training")
