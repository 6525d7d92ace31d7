"""Refreshed: values of the store that are looked up again when they have grown old, and kept while it cannot be reached.

bases = Refreshed(read_base, age_s=5.0)
bases.get("minilm-l6-t3")
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from oral_ray.errors import GeneratorError, MissingObjectError, StoreError

K = TypeVar("K")
V = TypeVar("V")


class Refreshed(Generic[K, V]):
    """Values that are read again once they are older than `age_s`; the old one stays while the store cannot be reached."""

    def __init__(self, read: Callable[[K], V], age_s: float) -> None:
        self._read, self._age_s = read, age_s
        self._known: dict[K, tuple[float, V]] = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V:
        """The value of a key, read at most `age_s` seconds ago where that was possible."""
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[0] < self._age_s:
            return known[1]
        with self._lock:
            known = self._known.get(key)
            if known is not None and time.monotonic() - known[0] < self._age_s:
                return known[1]
            try:
                value = self._read(key)
            except MissingObjectError:
                raise
            except (StoreError, GeneratorError):
                if known is None:
                    raise
                value = known[1]
            self._known[key] = (time.monotonic(), value)
            return value
