"""`metrics`: what Git says of releases, printed once or served to a Prometheus."""

from __future__ import annotations

import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Annotated, Any

import typer

from lockgate.cli import console
from lockgate.domain.state_metrics import page
from lockgate.errors import LockgateError, UsageError
from lockgate.settings import Settings

logger = logging.getLogger("lockgate.metrics")


def register(app: typer.Typer) -> None:
    app.command()(metrics)


def metrics(
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT to serve at, until it is ended. None: print once.")
    ] = None,
) -> None:
    """Release states in Prometheus' text format: phase, weights, candidates and denylist, as they are in Git."""
    if listen is None:
        console.out.print(read_page(Settings()), markup=False, highlight=False, end="")
        return
    host, _, port = listen.rpartition(":")
    try:
        server = serve(Settings(), host, int(port))
    except (ValueError, OSError, OverflowError) as error:
        raise UsageError(f"cannot listen at {listen}: {error}", hint="give HOST:PORT") from error
    with server:
        server.serve_forever()


def read_page(settings: Settings) -> str:
    """The page of the remote's head. `GitError` if it cannot be read: states of yesterday are worse than none."""
    from tasks.workspace import Workspace

    repository = Workspace(settings).gitops
    repository.sync()
    return page(repository.states(lambda path, error: logger.warning("%s: %s", path, error)))


def serve(settings: Settings, host: str, port: int) -> ThreadingHTTPServer:
    """A server of `GET /metrics`, bound. 503 while the repository cannot be read, so that alerts see the absence."""
    one_at_a_time = Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self._answer(404, "GET /metrics\n")
                return
            try:
                with one_at_a_time:
                    text = read_page(settings)
            except LockgateError as error:
                logger.warning("the states cannot be read: %s", error.message)
                self._answer(503, f"{error.message}\n")
                return
            self._answer(200, text)

        def _answer(self, code: int, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    return ThreadingHTTPServer((host, port), Handler)
