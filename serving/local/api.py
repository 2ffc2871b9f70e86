"""The agent's HTTP interface, on the loopback address only.

GET  /status                          the cluster's state (`ClusterStatus`)
POST /sync[?commit=SHA&timeout=S]     look at the remote now; with `commit`, answer when it is applied
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lockgate.domain.cluster import ClusterStatus
from serving.ports import LOOPBACK

log = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 60.0
_SECONDS = re.compile(r"\d+(\.\d+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class StatusApi:
    """Serves from threads of its own; what it needs of the agent it asks in the agent's event loop."""

    def __init__(
        self,
        port: int,
        loop: asyncio.AbstractEventLoop,
        *,
        status: Callable[[], ClusterStatus],
        sync: Callable[[str | None, str | None, float], Awaitable[bool]],
    ) -> None:
        """Binds at once: `OSError` if the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if urlsplit(self.path).path != "/status":
                    self._answer(404, {"error": "GET /status or POST /sync"})
                    return
                self._answer(200, self._ask(_call(status), 10).to_data())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                url = urlsplit(self.path)
                if url.path != "/sync":
                    self._answer(404, {"error": "GET /status or POST /sync"})
                    return
                query = parse_qs(url.query)
                commit = query.get("commit", [""])[0] or None
                timeout = query.get("timeout", ["10"])[0]
                if not _SECONDS.fullmatch(timeout) or not _COMMIT.fullmatch(commit or "0" * 40):
                    self._answer(400, {"error": "commit is 40 hex digits, timeout a number"})
                    return
                wait = min(float(timeout), _LONGEST_WAIT_SECONDS)
                model = query.get("model", [""])[0] or None
                applied = self._ask(sync(commit, model, wait), wait + 10)
                self._answer(200, {"applied": applied})

            def _ask(self, question: Awaitable[Any], seconds: float) -> Any:
                return asyncio.run_coroutine_threadsafe(_await(question), loop).result(seconds)

            def _answer(self, code: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                log.debug(format, *args)

        self._server = _Server((LOOPBACK, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, name="status-api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


async def _call(function: Callable[[], Any]) -> Any:
    return function()


async def _await(question: Awaitable[Any]) -> Any:
    return await question
