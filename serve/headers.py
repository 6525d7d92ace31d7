"""Request headers read as their standards say: Prefer (RFC 7240), ETags and ranges (RFC 9110), Host.

parse_prefer(["Respond-Async, wait=10"]) -> Preferences(wait_s=10.0, is_async=True)
etag_matches('W/"a", "b"', '"b"') -> True
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_PREFERENCE = re.compile(rf"\s*+({_TOKEN})\s*+(?:=\s*+({_TOKEN}|{_QUOTED})?\s*+)?(?:;|$)")
_LISTED = re.compile(rf'(?:[^",]|{_QUOTED})++')
_ETAG = re.compile(r'[\s,]*+(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*+(?:,|$)\s*+')
_RANGE = re.compile(r"bytes=\s*(\d{0,30})-(\d{0,30})\s*", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::\d{0,5})?")
_MAX_WAIT_DIGITS, _MAX_CHARS = 9, 2000


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a client would like: at most so many seconds of waiting (None: it does not say), a job instead of waiting."""

    wait_s: float | None = None
    is_async: bool = False

    @property
    def limit_s(self) -> float | None:
        """How long the client would wait: `wait` says it, `respond-async` alone means not at all, None is no wish."""
        return 0.0 if self.wait_s is None and self.is_async else self.wait_s

    @property
    def applied(self) -> dict[str, str]:
        """The header that says what was honoured; none where nothing was asked for."""
        names = ["respond-async"] * self.is_async + ["wait"] * (self.wait_s is not None)
        return {"Preference-Applied": ", ".join(names)} if names else {}


def parse_prefer(lines: Sequence[str]) -> Preferences:
    """The preferences of all Prefer headers of a request, names in any case; the first of a name counts.

    What is not known, and a `wait` that is no whole number, is passed over: preferences are never an error.
    """
    found: dict[str, str] = {}
    for listed in _LISTED.findall(", ".join(lines)[:_MAX_CHARS]):
        if match := _PREFERENCE.match(listed):
            found.setdefault(match[1].lower(), _unquoted(match[2] or ""))
    wait = found.get("wait", "")
    wait_s = float(wait[:_MAX_WAIT_DIGITS]) if wait.isascii() and wait.isdigit() else None
    return Preferences(wait_s, "respond-async" in found)


def etag_matches(header: str, tag: str, is_strong: bool = False) -> bool:
    """Whether a list of ETags, or `*`, has a tag. Weak tags count as the strong one unless `is_strong`."""
    if header.strip() == "*":
        return True
    at, found = 0, False
    while at < len(header):
        match = _ETAG.match(header, at)
        if match is None:
            return False  # no list of tags
        found |= match[2] == tag and not (is_strong and match[1])
        at = match.end()
    return found


def range_applies(if_range: str, tag: str) -> bool:
    """Whether Range counts under an If-Range header: it names this very content. A date never does: files have none."""
    return not if_range or if_range.strip() == tag


def parse_range(header: str, num_bytes: int) -> tuple[int, int] | None:
    """The [start, stop) that a Range header asks for, None for the whole file; IndexError past its end.

    A header of another form, or with several ranges, asks for the whole file.
    """
    found = _RANGE.fullmatch(header.strip())
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:  # the last n bytes
        start, stop = max(0, num_bytes - int(last)), num_bytes
    else:
        start, stop = int(first), min(num_bytes, int(last) + 1 if last else num_bytes)
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise IndexError(header)
    return start, stop


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without port, brackets and a last dot; None where it is no host."""
    match = _HOST.fullmatch(host.strip())
    return match[1].lower().strip("[]").removesuffix(".") if match else None


def _unquoted(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word
