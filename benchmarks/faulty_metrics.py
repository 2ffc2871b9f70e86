"""`lockgate`, whose metrics come through a proxy that hangs, lies or is absent: `python -m benchmarks.faulty_metrics CONTROL ARGUMENTS…`.

Every scrape goes over HTTP as always, by way of a server in this process. CONTROL is a file of JSON that is read at each scrape,
`{"mode": MODE, "slots": [SLOT, …], "gateway": BOOL}`; while it is absent the proxy passes everything on. `gateway` says whether
what Envoy tells of these slots is affected too.

* `hang`: no answer.
* `absent`: 404.
* `nan`: every value of the engine is NaN.
* `reset`: counters begin at zero again, as after a restart, and jump back when the mode ends.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import urllib.parse
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from lockgate.adapters.metrics import ScrapeTarget
from lockgate.cli import main
from serving.local.cluster import LocalCluster

HANG_SECONDS = 10.0
"""Longer than any scrape waits."""
_SAMPLE = re.compile(r"^([^#\s]\S*(?:\{[^}]*\})?)\s+(\S+)$")


class Faults:
    """What is to be done to whose metrics, by the control file."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._zero: dict[str, dict[str, float]] = {}
        self.stop = threading.Event()

    def mode(self, slot: str, *, gateway: bool) -> str:
        try:
            wanted = json.loads(self._control.read_text())
        except FileNotFoundError:
            return ""
        if slot not in wanted["slots"] or (gateway and not wanted.get("gateway")):
            return ""
        return str(wanted["mode"])

    def altered(self, mode: str, url: str, text: str) -> str:
        """The metrics as the fault shows them."""
        if mode != "reset":
            self._zero.pop(url, None)
        if mode == "nan":
            return _each(text, lambda _name, _value: "NaN")
        if mode == "reset":
            zero = self._zero.setdefault(url, dict(_values(text)))
            return _each(text, lambda name, value: repr(max(0.0, value - zero.get(name, 0.0))))
        return text


def _values(text: str) -> list[tuple[str, float]]:
    found = (_SAMPLE.match(line) for line in text.splitlines())
    return [(match[1], float(match[2])) for match in found if match is not None]


def _each(text: str, value: Any) -> str:
    lines = []
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        lines.append(f"{match[1]} {value(match[1], float(match[2]))}" if match else line)
    return "\n".join(lines) + "\n"


def _handler(faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            mode = faults.mode(query["slot"], gateway=query["gateway"] == "yes")
            if mode == "hang":
                faults.stop.wait(HANG_SECONDS)
                return
            if mode == "absent":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                answer = httpx.get(query["url"], timeout=5, trust_env=False)
            except httpx.HTTPError:
                return  # as the server behind it does: no answer
            body = faults.altered(mode, query["url"], answer.text).encode()
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("content-type", "text/plain"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the scrapes are in the trace."""

    return Handler


def run(control: Path, arguments: list[str]) -> None:
    """`lockgate ARGUMENTS` with the proxy in front of every metrics endpoint."""
    faults = Faults(control)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(faults))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = LocalCluster.scrape_targets

    def through_proxy(self: LocalCluster, *args: Any, **kwargs: Any) -> tuple[ScrapeTarget, ...]:
        return tuple(
            replace(target, url=_proxied(server.server_port, target)) if target.url else target
            for target in own(self, *args, **kwargs)
        )

    LocalCluster.scrape_targets = through_proxy  # type: ignore[method-assign]  # the fault's place
    sys.argv = ["lockgate", *arguments]
    try:
        main()
    finally:
        faults.stop.set()
        server.shutdown()


def _proxied(port: int, target: ScrapeTarget) -> str:
    query = urllib.parse.urlencode(
        {
            "slot": target.slot,
            "gateway": "yes" if target.cluster is not None else "no",
            "url": target.url or "",
        }
    )
    return f"http://127.0.0.1:{port}/?{query}"


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
