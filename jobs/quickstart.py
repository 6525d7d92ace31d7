"""All stages in a row on the embedded default, then the table of arms and the report.

Reads nothing but installed packages and the repository; writes the store and, in `out`: scores.parquet, summary.json,
report.html and the tables of `jobs/evaluate.py`.

    python jobs/quickstart.py --config quickstart seed=1 --store s3://bucket/prefix
"""

import sys

from oral_ray.cli import run_job
from oral_ray.study.quickstart import run_quickstart

if __name__ == "__main__":
    sys.exit(run_job(run_quickstart, str(__doc__)))
