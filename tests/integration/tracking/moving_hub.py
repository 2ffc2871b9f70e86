"""As much of the Hub's API as following a branch or tag asks: its references and what each points to now."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class MovingHub:
    """`org/name` with branches and tags that tests move."""

    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        name, _, rest = path.removeprefix("/api/models/").partition("/revision/")
        if name == "org/name/refs":
            listed = {
                kind: [
                    {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c}
                    for n, c in refs.items()
                ]
                for kind, refs in (("branches", self.branches), ("tags", self.tags))
            }
            return 200, {**listed, "converts": []}
        known = {**self.branches, **self.tags, **{c: c for c in self.branches.values()}}
        if name == "org/name" and rest in known:
            return 200, {"id": name, "sha": known[rest], "siblings": []}
        return 404, {}

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yields the endpoint."""
        double = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                status, said = double.answer(unquote(urlsplit(self.path).path))
                body = json.dumps(said).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
