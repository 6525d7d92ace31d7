"""A server on loopback that speaks as much of the Hugging Face hub's protocol as its client needs to read models."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

GATED = "gated/model"


class HubServer:
    """Repositories by name, each the files of a folder; `asked` are the paths of all requests in order."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories, self.asked = repositories, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def commit(self, name: str) -> str:
        """The one revision of a repository, which is `main` and `refs/pr/1` too."""
        return hashlib.sha1(name.encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a path."""
        self.asked.append(path)
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4 if is_api else 2 :]
        if name == GATED:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        folder, commit = self.repositories[name], self.commit(name)
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        if is_api and not rest:
            rest = ["revision", "main"]
        known = [known for known in ("main", "refs/pr/1", commit) if "/".join(rest[1:]).startswith(known)]
        if not known:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if is_api and rest[0] == "revision":
            about = {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        if is_api and rest[0] == "tree":
            tree = [
                {"type": "file", "path": file, "size": path.stat().st_size, "oid": _oid(path)}
                for file, path in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        file = "/".join(rest[1:]).removeprefix(known[0]).strip("/")
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"Entry not found"
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_oid(files[file])}"'}, files[file].read_bytes()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, headers, body = answer(self.path)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
