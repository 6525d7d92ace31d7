"""What a worker raised, dug out of what Ray wraps around it."""

import contextlib
from collections.abc import Iterator

import ray.exceptions

from oral_ray.errors import OralError


def users_error(error: BaseException | None) -> OralError | None:
    """The OralError in what Ray wraps around it; Ray puts a traceback below its message, which is cut off again."""
    # What Ray raises for a worker's error is of both classes: its own and that of the error.
    while error is not None and (isinstance(error, ray.exceptions.RayError) or not isinstance(error, OralError)):
        error = getattr(error, "cause", None) or error.__cause__
    return type(error)(str(error).partition("\n")[0]) if isinstance(error, OralError) else None


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """Let an OralError of a worker arrive as one."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise users_error(error) or error from None
