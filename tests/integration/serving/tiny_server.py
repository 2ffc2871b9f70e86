"""A small real HTTP server that stands in for an engine where the cluster, not the engine, is tested.

It streams completions slowly, drains on SIGTERM as vLLM does, counts requests, and misbehaves on demand by files in the
directory named by TINY_CONTROL: `hang-NAME` (health hangs), `unhealthy-NAME` (health says 503), `die-NAME` (exits at
start), `nonsense-NAME` (answers with one character).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTROL = Path(os.environ["TINY_CONTROL"].removeprefix("dir:"))
NAME = os.environ.get("TINY_NAME", "tiny")
served = 0
active = 0
lock = threading.Lock()
draining = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            while (CONTROL / f"hang-{NAME}").exists():
                time.sleep(0.1)
            self._send(503 if (CONTROL / f"unhealthy-{NAME}").exists() else 200, b"")
        elif self.path == "/metrics":
            text = (
                "# TYPE vllm:request_success_total counter\n"
                f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {served}\n'
            )
            self._send(200, text.encode())
        else:
            self._send(404, b"")

    def do_POST(self) -> None:
        global served, active
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if draining.is_set():
            self._send(
                200, json.dumps({"choices": [{"text": "", "finish_reason": "abort"}]}).encode()
            )
            return
        with lock:
            active += 1
        try:
            if body.get("stream"):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for index in range(body.get("max_tokens", 10)):
                    self._chunk(
                        f"data: {json.dumps({'token': index, 'server': NAME})}\n\n".encode()
                    )
                    time.sleep(body.get("pause", 0.05))
                self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")
            else:
                nonsense = (CONTROL / f"nonsense-{NAME}").exists()
                text = "!" * 60 if nonsense else "Paris, Lyon and Marseille are large cities."
                message: dict[str, Any] = {"content": text, "role": "assistant"}
                choice = {"text": text, "message": message, "finish_reason": "stop"}
                self._send(200, json.dumps({"choices": [choice], "server": NAME}).encode())
            with lock:
                served += 1
        finally:
            with lock:
                active -= 1

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--shutdown-timeout", type=float, default=0)
    parser.add_argument("--model", required=True)
    arguments, _ = parser.parse_known_args()
    if (CONTROL / f"die-{NAME}").exists():
        sys.exit("told to die")
    assert Path(arguments.model).is_dir(), arguments.model
    server = Server((arguments.host, arguments.port), Handler)

    def stop(*_: object) -> None:
        def drain() -> None:
            draining.set()
            deadline = time.monotonic() + arguments.shutdown_timeout
            while active and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.1)
            os._exit(0)

        threading.Thread(target=drain).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever()


if __name__ == "__main__":
    main()
