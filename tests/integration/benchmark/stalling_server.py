"""A small real HTTP server that streams completions as an engine does, and stands still for a while once it is asked to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def __init__(self, stall: tuple[float, float] | None, cut: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stall = stall
        self.cut = cut
        self.first: float | None = None
        self.lock = threading.Lock()

    def stand_still(self) -> None:
        """Until the stall is over, if it is on: its seconds count from the first request."""
        with self.lock:
            if self.first is None:
                self.first = time.monotonic()
        if self.stall is None:
            return
        since = time.monotonic() - self.first
        if self.stall[0] <= since < self.stall[1]:
            time.sleep(self.stall[1] - since)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.stand_still()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        tokens = asked["max_tokens"] - (1 if self.server.cut else 0)
        for _ in range(tokens):
            self._event({"choices": [{"text": "x"}]})
            time.sleep(0.002)
        self._event({"choices": [], "usage": {"completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def do_GET(self) -> None:
        self.send_error(404)

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Nothing: a test's output is its own."""


@contextmanager
def stalling(stall: tuple[float, float] | None = None, *, cut: bool = False) -> Iterator[str]:
    """The server's base URL. `stall`: from when to when it stands still, in seconds since the first request. `cut`: answers
    are a token shorter than asked for."""
    server = _Server(stall, cut)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
