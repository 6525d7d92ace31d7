"""Which hosts the service answers for, and which requests a foreign web page could have made a browser send.

A page of somewhere else reaches a service on loopback in two ways: its own name is made to point at 127.0.0.1 (DNS
rebinding; then Host is its name), or it sends a form or a body of plain text across (then Origin is its name). Without
tokens nothing else would stop it, so Host must be a loopback name or one of `serve.allowed_hosts`, and so must Origin where
something is changed. Bodies are JSON only, which no page sends across without asking first (CORS), and nobody says yes.
"""

from starlette.datastructures import Headers

from oral_ray.config import ServeConfig
from serve.headers import host_name
from serve.problems import RefusedError
from serve.security import is_loopback

JSON = "application/json"
_READING = ("GET", "HEAD", "OPTIONS", "TRACE")


class Doorkeeper:
    """Lets a request in by its headers, or raises RefusedError with 400, 403, 415 or 421."""

    def __init__(self, config: ServeConfig) -> None:
        self._names = {name.lower().strip("[]").removesuffix(".") for name in config.allowed_hosts}
        self._is_open = not config.tokens

    def admit(self, method: str, headers: Headers) -> None:
        """Raise for a request that is not for this service, or whose body is no JSON."""
        if self._is_open or self._names:
            self._check_host(headers.getlist("host"))
        if method not in _READING:
            if self._is_open:
                self._check_origin(headers.get("origin"))
            if _has_body(headers):
                _check_json(headers)

    def _check_host(self, hosts: list[str]) -> None:
        if len(hosts) != 1:
            detail = f"the request has {len(hosts)} Host headers; send one, with the name or address of the service"
            raise RefusedError(400, "HostError", detail)
        name = host_name(hosts[0])
        if name is None or not self._is_ours(name):
            detail = (
                f"this service does not answer for the host {_shown(hosts[0])}; ask {self._wanted()}, "
                "or add the name to serve.allowed_hosts"
            )
            raise RefusedError(421, "HostError", detail)

    def _check_origin(self, origin: str | None) -> None:
        if origin is None:
            return
        scheme, _, host = origin.partition("://")
        name = host_name(host) if scheme in ("http", "https") else None
        if name is None or not self._is_ours(name):
            detail = (
                f"a page of {_shown(origin)} may change nothing here; use the service's own page or a client, "
                "or add the page's host to serve.allowed_hosts"
            )
            raise RefusedError(403, "OriginError", detail)

    def _is_ours(self, name: str) -> bool:
        return name in self._names or name.endswith(".localhost") or is_loopback(name)

    def _wanted(self) -> str:
        return " or ".join(["localhost", "127.0.0.1", *sorted(self._names)])


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _check_json(headers: Headers) -> None:
    kind = headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != JSON:
        found = f"is {_shown(kind)}" if kind else "is missing"
        raise RefusedError(415, "MediaTypeError", f"content-type {found}; send the body as '{JSON}'", {"Accept": JSON})
    if (coding := headers.get("content-encoding", "identity")).strip().lower() != "identity":
        raise RefusedError(
            415, "MediaTypeError", f"content-encoding {_shown(coding)} is not read; send the body as it is",
            {"Accept-Encoding": "identity"},
        )  # fmt: skip


def _shown(text: str) -> str:
    return ascii(text)[:80]
