"""A small server that speaks as much of the Hugging Face Hub's HTTP API as a download needs, and can break off or lie."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What the server serves as `org/name`. Files longer than 1000 bytes are LFS files."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    status: int | None = None
    """Answer everything with this status and `error_code`."""
    page: bytes | None = None
    """Answer everything with this, as a proxy's page or a mirror of something else does."""
    error_code: str | None = None
    cut_after: int | None = None
    """Break the connection after so many bytes of the body of an LFS file, once."""
    cut_always: bool = False
    refuse_ranges: bool = False
    """Answer a Range request with the whole file, as some mirrors do."""
    tampered: dict[str, bytes] = field(default_factory=dict)
    """Bytes that are served in place of those that are listed."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of every request."""
    token: str | None = None
    """Gated: who does not send this token gets no more than that the model is there."""
    security: Any = None
    """`securityRepoStatus`, for those who ask for it."""
    storage: str | None = None
    """Where LFS files are redirected to, as the Hub does: the address of another server."""
    seen_tokens: list[str | None] = field(default_factory=list)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _blob_id(data)}
    if len(data) > 1000:
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository: Repository

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        repository = self.repository
        path = unquote(urlsplit(self.path).path)
        repository.requests.append((self.command, path, self.headers.get("Range")))
        sent = self.headers.get("Authorization")
        repository.seen_tokens.append(sent)
        if repository.page is not None:
            self._send(200, repository.page, body=body)
        elif repository.status is not None:
            self._error(repository.status, repository.error_code)
        elif repository.token is not None and sent != f"Bearer {repository.token}":
            self._error(401 if sent is None else 403, "GatedRepo")
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        else:
            self._file(path.lstrip("/"), body)

    def _api(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        if name != "org/name":
            self._error(404, "RepoNotFound")
        elif (revision or "main") not in self.repository.revisions:
            self._error(404, "RevisionNotFound")
        else:
            files = self.repository.files
            siblings = [_sibling(path, data) for path, data in files.items()]
            answer: dict[str, Any] = {"id": name, "sha": COMMIT, "siblings": siblings}
            if "securityStatus" in urlsplit(self.path).query and self.repository.security:
                answer["securityRepoStatus"] = self.repository.security
            self._send(200, json.dumps(answer).encode())

    def _file(self, rest: str, body: bool) -> None:
        name = rest.partition(f"/resolve/{COMMIT}/")[2]
        listed = self.repository.files.get(name)
        if listed is None:
            self._error(404, "EntryNotFound")
            return
        data = self.repository.tampered.get(name, listed)
        etag = hashlib.sha256(listed).hexdigest() if len(listed) > 1000 else _blob_id(listed)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.repository.storage is not None and len(listed) > 1000:
            address = f"{self.repository.storage}/org/name/resolve/{COMMIT}/{name}"
            self._send(302, b"", {**headers, "Location": address, "X-Linked-Size": str(len(data)),
                                  "X-Linked-ETag": headers["ETag"]}, body)  # fmt: skip
            return
        begin = 0
        wanted = self.headers.get("Range")
        if wanted and body and not self.repository.refuse_ranges:
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._send(206 if begin else 200, data[begin:], headers, body)

    def _error(self, status: int, code: str | None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body or self.command == "HEAD":
            return
        cut = self.repository.cut_after
        if cut is not None and len(data) > cut:
            if not self.repository.cut_always:
                self.repository.cut_after = None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self.wfile.write(data)


@contextmanager
def hub(repository: Repository) -> Iterator[str]:
    """Serve the repository; yields the endpoint."""
    handler = type("Handler", (_Handler,), {"repository": repository})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
