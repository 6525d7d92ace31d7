"""Who may do what: bearer tokens, their scopes and rates; and that without tokens only loopback is served.

`serve.tokens` names a file (`file:/etc/oral/tokens`) or an environment variable (`env:ORAL_TOKENS`) with one token a line:

    # name   scopes                 SHA-256 of the token
    alice    generate,read          9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

    python -c "import hashlib, secrets; t = secrets.token_urlsafe(32); print(t, hashlib.sha256(t.encode()).hexdigest())"

Only the hash is kept, so neither the file nor a log can give a token away. `admin` includes the other scopes.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from oral_ray.config import ServeConfig
from oral_ray.errors import ConfigError
from serve.problems import RefusedError

Scope = Literal["generate", "read", "admin"]
ANONYMOUS = "anonymous"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="oral_ray"'}


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is accepted: whose it is, the SHA-256 of its text, what it may do."""

    name: str
    digest: str
    scopes: frozenset[str]


def read_tokens(source: str) -> tuple[Token, ...]:
    """The tokens that `serve.tokens` names, none for ''; ConfigError for anything that is not as described above."""
    if not source:
        return ()
    kind, _, where = source.partition(":")
    if kind == "file":
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve.tokens: {where!r} cannot be read: {error}; check the path") from None
    elif kind == "env":
        text = os.environ.get(where, "").replace(";", "\n")
    else:
        raise ConfigError("serve.tokens is neither 'file:PATH' nor 'env:NAME'; tokens themselves never stand in it")
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    tokens = tuple(_token(number, parts) for number, parts in enumerate(lines, 1) if parts)
    if not tokens:
        raise ConfigError(f"serve.tokens {source!r} holds no token; give at least one line 'NAME SCOPES SHA256'")
    return tokens


def _token(number: int, parts: list[str]) -> Token:
    if len(parts) != 3 or not re.fullmatch(r"[0-9a-f]{64}", parts[2]):
        raise ConfigError(f"serve.tokens, line {number}: not of the form 'NAME SCOPES SHA256' (64 hex digits)")
    name, scopes, digest = parts[0], frozenset(parts[1].split(",")), parts[2]
    if odd := sorted(scopes - {*get_args(Scope)}):
        raise ConfigError(
            f"serve.tokens, line {number}: unknown scope {odd[0]!r}; there are {', '.join(get_args(Scope))}"
        )
    return Token(name, digest, scopes)


class Guard:
    """Lets requests in, or raises RefusedError with 401, 403 or 429."""

    def __init__(self, config: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = read_tokens(config.tokens)
        self._rate, self._clock = config.rate_per_minute / 60, clock
        self._burst = max(1.0, float(config.rate_per_minute))
        self._left: dict[str, tuple[float, float]] = {}

    @property
    def is_open(self) -> bool:
        """Whether anybody may ask."""
        return not self._tokens

    def admit(self, token: str | None, scope: Scope, server: str | None) -> str:
        """The caller's name. `server` is the address that the request came in at."""
        if self.is_open:
            if not is_loopback(server):
                raise RefusedError(403, "NotServedError", f"without serve.tokens only loopback is served, not {server}")
            name = ANONYMOUS
        else:
            found = self._find(token or "")
            if found is None:
                raise RefusedError(
                    401, "TokenError", "no valid bearer token; send 'Authorization: Bearer ...'", _CHALLENGE
                )
            if not {scope, "admin"} & found.scopes:
                raise RefusedError(
                    403, "ScopeError", f"token {found.name!r} has no scope {scope!r}; ask for one that has"
                )
            name = found.name
        self._count(name)
        return name

    def _find(self, text: str) -> Token | None:
        """Compares with every token, in a time that tells nothing about any."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(digest, token.digest):
                found = token
        return found

    def _count(self, name: str) -> None:
        """A bucket a caller: `rate_per_minute` requests at once, refilled evenly."""
        if not self._rate:
            return
        now = self._clock()
        left, at = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        if left < 1:
            wait_s = int((1 - left) / self._rate) + 1
            raise RefusedError(
                429, "RateError", f"{name!r} has used its requests a minute; come back in {wait_s} s",
                {"Retry-After": str(wait_s)},
            )  # fmt: skip
        self._left[name] = (left - 1, now)


def is_loopback(host: str | None) -> bool:
    """Whether an address is of this machine alone; a transport without an address (a test client's) is."""
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_bind(guard: Guard, host: str) -> None:
    """ConfigError for a service that would answer the network without asking who is there."""
    if guard.is_open and not is_loopback(host):
        raise ConfigError(
            f"the service would listen on {host!r} without tokens; set serve.tokens, or http_options.host to 127.0.0.1"
        )
