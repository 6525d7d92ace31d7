"""Tokenise the corpus with Ray Data: gauge-fixed weight tokens in Parquet shards, and their statistics.

Reads `records/corpus/`, `adapters/<digest>/`; writes `shards/<fingerprint>/`, manifest last.

    python jobs/shards.py --config quickstart tokens.token_dim=192
    ray job submit --working-dir . -- python jobs/shards.py --config quickstart
"""

import sys
from typing import Any

from oral_ray.cli import run_job
from oral_ray.config import Config
from oral_ray.pipeline.bases import resolve_bases
from oral_ray.pipeline.corpus import train_corpus
from oral_ray.pipeline.run import begin_run
from oral_ray.pipeline.shards import write_shards


def main(config: Config) -> dict[str, Any]:
    """Tokenise what is missing and return a summary row."""
    run = begin_run(config)
    with run.session():
        run = resolve_bases(run)
        manifest = write_shards(run, train_corpus(run))
    tokens = {layout.num_tokens for layout in manifest.layouts.values()}
    return {
        "shards": manifest.fingerprint,
        "rows": manifest.num_rows,
        "files": len(manifest.files),
        "tokens": max(tokens),
    }


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
