"""Benchmarks for developers: how parts of the method and of the code compare, and what larger fleets would cost.

    python infra/dev/bench NAME [option=value ...] [--json FILE]
    python infra/dev/bench all --json out/bench            # everything but growth, which reads the reports of the others

What a user times on a machine of their own is `oral-ray bench`. Both are written alike: see oral_ray/bench/__init__.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # infra, so that a benchmark is dev.bench.NAME in every process
from dev.bench.registry import DEV_BENCH  # noqa: E402

from oral_ray.cli import guarded  # noqa: E402


def main() -> int:
    """Run what the command line asks for."""
    about = "\n".join(f"  {name:9} {what}" for name, what in DEV_BENCH.about.items())
    parser = argparse.ArgumentParser(
        prog=DEV_BENCH.command, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="benchmark, or all that measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there; with all, a folder")
    parser.add_argument("--verbose", action="store_true", help="log everything")
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="options of the benchmark")
    args = parser.parse_intermixed_args()
    show = partial(print, flush=True)
    return guarded(lambda args: DEV_BENCH.run(args.name, args.overrides, args.json, show), args, args.verbose)


if __name__ == "__main__":
    sys.exit(main())
