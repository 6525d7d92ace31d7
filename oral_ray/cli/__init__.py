"""The command line, `oral-ray ...`: parse, call one function each, print. The only module of the library that prints.

Exit codes: 0 done, 1 something unexpected (with a traceback), 2 an error that the message explains, 3 some items of many
failed and the others are done, 75 out of the time it was given, run the same command again, 141 nobody reads the output.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from oral_ray import __version__
from oral_ray.cli.adapters import add_adapter_commands
from oral_ray.cli.config import add_config_commands
from oral_ray.cli.store import add_store_commands
from oral_ray.config import DEFAULT_CONFIG, Config, load_config, shipped_names
from oral_ray.config.place import with_absolute_store
from oral_ray.errors import OralError, OutOfTimeError

SOME_FAILED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `oral-ray`."""
    args = _parsed(_parser(), argv)
    return guarded(args.call, args, args.verbose)


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; settings may stand on both sides of an option, which argparse alone does not take."""
    args, left = parser.parse_known_args(argv)
    if left and (not hasattr(args, "overrides") or any(item.startswith("-") or "=" not in item for item in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        args.overrides = [*args.overrides, *left]
    return args


class Closing(NamedTuple):
    """What a job prints at its end, and its exit code."""

    text: str
    code: int = 0


def run_job(
    job: Callable[..., Any],
    description: str,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Entry point of the jobs: `--config FILE section.key=value ...`; prints the job's summary.

    A job with `arguments` of its own is called with the parsed ones after the configuration.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _config_arguments(parser)
    if arguments:
        arguments(parser)
    args = _parsed(parser, argv)

    def call(args: argparse.Namespace) -> int:
        result = job(_config(args), args) if arguments else job(_config(args))
        closing = result if isinstance(result, Closing) else Closing(_shown(result))
        print(closing.text)
        return closing.code

    return guarded(call, args, args.verbose)


def _shown(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, indent=1)


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output any more; what is left of it is dropped then."""
    with contextlib.suppress(OSError):  # it is no file
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def guarded(call: Callable[[argparse.Namespace], Any], args: argparse.Namespace, verbose: bool) -> int:
    """Run a command; an OralError becomes one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no emoji, say, must not end a night
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of its own code
    for noisy in ("botocore", "boto3", "urllib3", "s3transfer", "filelock", "httpx", "ray", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = call(args) or 0
        sys.stdout.flush()  # a reader that has gone, such as `head`, shows here and not when the interpreter ends
        return code
    except OralError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 75 if isinstance(error, OutOfTimeError) else 2
    except OSError as error:
        if _reader_has_gone():
            return 141
        logging.getLogger(__name__).debug("failed", exc_info=error)
        reason = " ".join(str(getattr(error, "cause", error)).split())  # Ray wraps what a worker raises
        print(f"error: {reason}; check paths, space and permissions (--verbose says where)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="oral-ray", description="Generate LoRA adapters from prompts, at scale.")
    parser.add_argument("--version", action="version", version=f"oral-ray {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log everything")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, call: Callable[[argparse.Namespace], Any], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        command.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="log everything")
        return command

    command = add("quickstart", _quickstart, "Run all stages on the embedded default and print the table of arms.")
    _config_arguments(command, verbose=False)

    command = add("generate", _generate, "Generate an adapter from a prompt for a base version of the store.")
    _config_arguments(command, verbose=False)
    command.add_argument("--prompt", required=True, help="the task in words")
    command.add_argument("--base", required=True, help="id of a base version in the store")
    command.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    command.add_argument("--out", type=Path, help="also write the adapter to this folder")
    command.add_argument("--url", help="ask the service at this address instead of loading a generator here")
    command.add_argument(
        "--token-env", default="ORAL_TOKEN", metavar="NAME", help="variable that holds the token (default ORAL_TOKEN)"
    )

    add_adapter_commands(commands, print)
    add_store_commands(commands, print)
    add_config_commands(commands, print, _config_arguments, _config)

    command = add("report", _report, "Rebuild report.html and report.md from the tables of an output folder.")
    command.add_argument("folder", type=Path, help="output folder, such as out/quickstart")

    command = add("spread", _spread, "Print the arms of several runs (seeds) as one table: mean, lowest, highest.")
    command.add_argument("folders", type=Path, nargs="+", help="output folders of the runs")

    command = add("study", _study, "Run one stage of an evidence suite; every stage goes on where it stopped.")
    command.add_argument("name", help="suite: a shipped configuration, such as smollm2, or a TOML file")
    command.add_argument("--stage", required=True, help="stage, or all (an unknown one lists them)")
    command.add_argument("--store", help="store uri, the same as store.uri=...")
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the file's")

    command = add("bench", _bench, "Time generation, training or the store on this machine; ratios within one run.")
    command.add_argument("name", help="benchmark, or all (an unknown one lists them)")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the report there; with all, a folder")
    command.add_argument("overrides", nargs="*", metavar="option=value", help="options of the benchmark")
    return parser


def _config_arguments(parser: argparse.ArgumentParser, verbose: bool = True) -> None:
    shipped = f"TOML file, or a name: {', '.join(shipped_names())} (default {DEFAULT_CONFIG})"
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=shipped)
    parser.add_argument("--store", help="store uri, the same as store.uri=...")
    if verbose:
        parser.add_argument("--verbose", action="store_true", help="log everything")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the file's")


def _config(args: argparse.Namespace) -> Config:
    overrides = [*([f"store.uri={json.dumps(args.store, ensure_ascii=False)}"] if args.store else ()), *args.overrides]
    return with_absolute_store(load_config(args.config, overrides))


def _quickstart(args: argparse.Namespace) -> None:
    from oral_ray.study.quickstart import run_quickstart

    print(run_quickstart(_config(args)))


def _generate(args: argparse.Namespace) -> None:
    if args.url:
        _generate_remotely(args)
        return
    from oral_ray.generation.service import open_service

    service = open_service(_config(args))
    [digest] = service.generate([service.catalog.condition(args.prompt, args.base, args.seed)])
    if args.out:
        service.pull(digest, args.out)
    print(json.dumps({"id": digest, "uri": service.catalog.uri(digest), "folder": str(args.out) if args.out else None}))


def _generate_remotely(args: argparse.Namespace) -> None:
    from oral_ray.client import OralClient

    with OralClient(args.url, os.environ.get(args.token_env)) as client:
        adapter = client.generate(args.prompt, args.base, args.seed)
        if args.out:
            client.download(adapter.id, args.out)
    print(json.dumps({"id": adapter.id, "uri": adapter.uri, "folder": str(args.out) if args.out else None}))


def _report(args: argparse.Namespace) -> None:
    from oral_ray.evaluation.report.page import write_report

    print(write_report(args.folder))


def _spread(args: argparse.Namespace) -> None:
    from oral_ray.evaluation.report.tables import spread_text

    print(spread_text(args.folders))


def _study(args: argparse.Namespace) -> None:
    from oral_ray.study.stages import run_stage

    args.config = args.name
    print(run_stage(_config(args), args.stage))


def _bench(args: argparse.Namespace) -> None:
    from oral_ray.bench.registry import BENCH

    BENCH.run(args.name, args.overrides, args.json, partial(print, flush=True))


if __name__ == "__main__":
    sys.exit(main())
