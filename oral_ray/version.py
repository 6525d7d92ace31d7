"""Which code this is: the package's version and, where it can be known, the git commit that it was taken from.

A clone asks git; an image has no clone and says its commit in ORAL_COMMIT (infra/Dockerfile).
"""

import functools
import os
import subprocess
from pathlib import Path

from oral_ray import __version__


@functools.cache
def code_version() -> str:
    """`0.2.0+1a2b3c4d5e6f`: version and commit, with `.dirty` where the clone has changes; `0.2.0` where none is known."""
    commit = os.environ.get("ORAL_COMMIT") or clone_commit()
    return f"{__version__}+{commit.replace('+', '.dirty')}" if commit else __version__


def clone_commit() -> str:
    """The git commit of this source tree, with `+` where it has changes; empty outside a clone."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:  # installed below a clone of something else
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
