"""The page: a few files of serve/page/, read once, served beside the API without a token (they hold nothing secret).

The page asks the same routes as every other client. Its scripts and styles are files, so that the Content-Security-Policy
of serve/edge.py needs no exception.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response

from serve.headers import etag_matches

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip


def add_page(api: FastAPI) -> None:
    """`/` is the page, `/page/<file>` what it is made of; a browser asks again and is told when nothing has changed."""
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in TYPES:
            route = "/" if path.name == INDEX else f"/page/{path.name}"
            api.add_api_route(route, _answer(path), methods=["GET"], include_in_schema=False)


def _answer(path: Path) -> Callable[[Request], Awaitable[Response]]:
    data, media_type = path.read_bytes(), TYPES[path.suffix]
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if etag_matches(", ".join(request.headers.getlist("if-none-match")), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(data, 200, headers, media_type)

    return answer
