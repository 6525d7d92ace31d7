"""Calls into transformers on files of others: silent, and whatever they raise becomes one BaseModelError."""

import contextlib
from collections.abc import Iterator

from oral_ray.errors import BaseModelError


@contextlib.contextmanager
def transformers_reads(what: str, library: str = "transformers") -> Iterator[None]:
    """Run calls of transformers on files that anybody may have written; `what` starts the sentence of a refusal."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (BaseModelError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises bare Exceptions, configs whatever their arithmetic does
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BaseModelError(f"{library} cannot read {what}: {reason}; check its files") from error
    finally:
        logging.set_verbosity(before)
