"""The world of the cluster's tests with a Kubernetes API in the embedded cluster's place.

The GitOps agent is a webhook that applies the commit it is told of; controllers and gateway follow at once.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from cluster_world import MODEL, World
from kubernetes_double import Kubernetes


class Agent:
    """Argo CD or Flux, as far as Lockgate can tell."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self.world: World | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()
                self.wfile.flush()
                outer.apply(kubernetes, body["after"])

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/api/webhook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def apply(self, kubernetes: Kubernetes, commit: str) -> None:
        assert self.world is not None
        if self.world.git("rev-parse", "HEAD") != commit:
            return
        directory = self.world.checkout / "models" / MODEL / "local" / "manifests"
        kubernetes.sync(yaml.safe_load(path.read_text()) for path in sorted(directory.glob("*")))
        kubernetes.settle()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
