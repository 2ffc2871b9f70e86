"""A small server that speaks as much of the Hugging Face Hub's HTTP API as the `datasets` library needs for one data set."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name: str
    files: Mapping[str, bytes]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body)["paths"]
        self._answer(paths)

    def _answer(self, paths: list[str] | None = None) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{self.name}"
        if path.startswith(f"{api}/paths-info/"):
            self._json([self._entry(p) for p in paths or () if p in self.files])
        elif path.startswith(f"{api}/tree/"):
            self._tree(path.removeprefix(f"{api}/tree/").partition("/")[2])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": p} for p in self.files]
            self._json({"id": self.name, "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path.startswith(f"/datasets/{self.name}/resolve/"):
            name = path.split("/resolve/")[1].partition("/")[2]
            if name in self.files:
                data = self.files[name]
                headers = {"ETag": f'"{self._entry(name)["oid"]}"', "X-Repo-Commit": COMMIT}
                self._send(200, data, headers)
            else:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _tree(self, directory: str) -> None:
        prefix = f"{directory}/" if directory else ""
        below = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        found = [self._entry(prefix + name) for name in below if recursive or "/" not in name]
        for name in sorted({name.partition("/")[0] for name in below if "/" in name}):
            found.append({"type": "directory", "path": prefix + name, "size": 0, "oid": COMMIT})
        if found:
            self._json(found)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _entry(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        return {"type": "file", "path": path, "size": len(data), "oid": oid}

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def dataset_hub(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve the data set `name` (`organisation/name`); yields the endpoint."""
    handler = type("Handler", (_Handler,), {"name": name, "files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
