"""`python -m oral_ray.cli`."""

import sys

from oral_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
