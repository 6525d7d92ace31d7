"""The nightly job: for every complete new base version, generate adapters, gate them on validation data, publish.

Reads landed bases under `<store>/<bases.prefix>/`, generators, corpus; writes `published/<base>/<adapter_id>/` and
`releases/<base>/<seq>.json`. Idempotent: what is released is skipped.

    python jobs/regenerate.py --config infra/configs/quickstart.toml 'regenerate.bases=["*"]'
    ray job submit --working-dir . -- python jobs/regenerate.py --config infra/configs/quickstart.toml
"""

import sys
from typing import Any

from oral_ray.cli import run_job
from oral_ray.cluster import session
from oral_ray.config import Config
from oral_ray.stages import regenerate


def main(config: Config) -> dict[str, Any]:
    """Regenerate what is due and return the summary."""
    with session(config.cluster, config.determinism):
        return regenerate.run(config).model_dump(mode="json")


if __name__ == "__main__":
    sys.exit(run_job(main, str(__doc__)))
