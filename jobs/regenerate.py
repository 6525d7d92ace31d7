"""The nightly job: for every complete new base version, generate adapters, gate them on validation data, publish.

Reads landed bases under `<store>/<bases.prefix>/`, generators, corpus; writes `published/<base>/<adapter_id>/` and
`releases/<base>/<name>/<seq>.json`. Idempotent: what is released is skipped. Prints a summary; exit code 0: all that was
due is done, 3: some items failed (named in the summary, tried again by the next run), 2: nothing could be done.

    python jobs/regenerate.py --config quickstart --dry-run
    python jobs/regenerate.py --config quickstart --summary night.json --summary night.html
    ray job submit --working-dir . -- python jobs/regenerate.py --config quickstart --watch
"""

import argparse
import logging
import sys
from pathlib import Path

from oral_ray.cli import SOME_FAILED, Closing, run_job
from oral_ray.config import Config
from oral_ray.nightly.regenerate import dry_run, run_night, watch
from oral_ray.nightly.summary import RegenerationSummary, summary_text, write_summary
from oral_ray.objects import probe
from oral_ray.pipeline.run import begin_run

logger = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What this job takes beside a configuration."""
    parser.add_argument("--dry-run", action="store_true", help="print what is due, and do nothing")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="one run (the default)")
    how.add_argument("--watch", action="store_true", help="run every regenerate.poll_s, and when an event names a base")
    text = "also write the summary to a .json, .html or .txt file; may be given several times"
    parser.add_argument("--summary", type=Path, action="append", default=[], metavar="FILE", help=text)


def main(config: Config, args: argparse.Namespace) -> Closing:
    """Regenerate what is due; the closing text is the summary."""
    if args.dry_run:
        return _closing(dry_run(begin_run(config, keep=False)), args)
    run = begin_run(config)
    probe(run.objects)
    with run.session():
        for summary in watch(run.config) if args.watch else ():
            logger.info("%s", _closing(summary, args).text)
        return _closing(run_night(run), args)


def _closing(summary: RegenerationSummary, args: argparse.Namespace) -> Closing:
    for path in args.summary:
        write_summary(summary, path)
    return Closing(summary_text(summary), SOME_FAILED if summary.failed else 0)


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__), arguments))
