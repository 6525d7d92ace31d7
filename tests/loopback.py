"""A real HTTP server on loopback that answers what a test tells it to, and remembers what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request as the server saw it; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What to answer; a body that is no bytes is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """`answers` are given in order, the last one for ever; or `route` decides."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    route: Callable[[Asked], Answer] | None = None

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.route is not None:
            return self.route(asked)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = server.answer(Asked(self.command, self.path, headers, body))
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"content-length": str(len(data)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: Any) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def adapter_json(digest: str, **changed: Any) -> dict[str, Any]:
    """An adapter as the service describes it, with one field that this client does not know."""
    about = {
        "id": digest, "uri": f"file:///store/adapters/{digest}", "base": "small-llama", "base_fingerprint": "f" * 32,
        "prompt": "Tell spam from mail.", "seed": 0, "generator": "recipe", "r": 2, "lora_alpha": 16.0,
        "target_modules": ["q_proj", "v_proj"], "later_field": 1,
        "files": ["adapter_model.safetensors", "adapter_config.json", "provenance.json"],
    }  # fmt: skip
    return about | changed


def problem(status: int, detail: str, **headers: str) -> Answer:
    """A refusal as the service words it."""
    body = {"type": "about:blank", "title": "Refused", "status": status, "detail": detail, "request_id": "req-7"}
    return Answer(status, body, {"content-type": "application/problem+json", **headers})


def serve_artifacts(server: Server, *artifacts: Any) -> None:
    """Answer adapter and file requests from artifacts, as the service does."""
    known = {artifact.digest: artifact for artifact in artifacts}

    def route(asked: Asked) -> Answer:
        parts = asked.path.split("?")[0].split("/")[3:]
        if asked.method == "POST":
            made = next(iter(known.values()))
            return Answer(200, adapter_json(made.digest, prompt=asked.json["prompt"]))
        if parts[0] not in known:
            return problem(404, f"no adapter {parts[0]!r}")
        if len(parts) == 1:
            return Answer(200, adapter_json(parts[0]))
        return Answer(200, known[parts[0]].files()[parts[2]])

    server.route = route
