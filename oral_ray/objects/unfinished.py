"""Files that are being written: under a name that no listing shows, until they are renamed or linked to their own."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".oral-tmp-"  # how such names begin


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A new temporary file beside `path`, to be renamed or linked to it; deleted in the end where it still is."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
