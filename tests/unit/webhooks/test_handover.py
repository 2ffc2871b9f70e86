"""From the disk to Prefect: nothing is lost, nothing is doubled, whoever is away or dies in between."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.webhooks import Handover, Outbox, PrefectApi
from lockgate.adapters.webhooks.handover import UNTRACKED_SECONDS
from lockgate.adapters.webhooks.prefect_api import Unavailable
from lockgate.domain.webhooks import Delivery

NOW = 1_790_000_000.0
DEPLOYMENT = "0f1e2d3c-0000-4000-8000-000000000001"


class Prefect:
    """As much of Prefect's API as a hand-over asks: deployments by name, and flow runs by idempotency key."""

    def __init__(self) -> None:
        self.status: int | None = None
        """Answers everything with it."""
        self.refuses: set[str] = set()
        """Models whose flow runs are not taken (422)."""
        self.deployed = True
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked = 0
        """Flow runs that were asked for; `requests` counts everything."""
        self.requests = 0
        self.authorizations: set[str | None] = set()
        self.port = 0

    @property
    def models(self) -> list[str]:
        return sorted(run["parameters"]["model"] for run in self.runs.values())

    @contextmanager
    def up(self) -> Iterator[None]:
        """Listens, at the same port each time."""
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                found = double.deployed and self.path == "/api/deployments/name/track/track"
                self._answer(200 if found else 404, {"id": DEPLOYMENT} if found else {})

            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                double.asked += 1
                if self.path != f"/api/deployments/{DEPLOYMENT}/create_flow_run":
                    self._answer(404, {})
                elif sent["parameters"]["model"] in double.refuses:
                    self._answer(422, {"detail": "no"})
                elif double.status is not None:
                    self._answer(500, {})
                else:
                    key = sent["idempotency_key"]
                    run = double.runs.setdefault(key, {**sent, "id": f"run-{len(double.runs)}"})
                    self._answer(201, {"id": run["id"]})

            def _answer(self, status: int, said: dict[str, Any]) -> None:
                double.requests += 1
                double.authorizations.add(self.headers.get("Authorization"))
                body = json.dumps(said).encode()
                self.send_response(double.status or status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


class World:
    """An outbox, a Prefect, and a clock that moves when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path, self.prefect, self.now = path, Prefect(), NOW
        self.tracked = {"a", "b", "c"}
        self.open()

    def open(self) -> None:
        self.outbox = Outbox(self.path)
        self.api = PrefectApi(lambda: f"http://127.0.0.1:{self.prefect.port}/api", timeout=5)
        self.handover = Handover(
            self.outbox, self.api, lambda: self.tracked, clock=lambda: self.now
        )

    def close(self) -> None:
        self.api.close()
        self.outbox.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def arrives(self, *models: str, revision: str = "1") -> int:
        sent = [Delivery(model=m, source=f"hub:org/{m}", revision=revision) for m in models]
        return asyncio.run(self.outbox.store(sent, self.now))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "deliveries.sqlite")
    yield made
    made.close()


def test_a_delivery_becomes_one_flow_run_that_knows_nothing_but_the_models_name(
    world: World,
) -> None:
    world.arrives("a")
    with world.prefect.up():
        assert [world.handover.once() for _ in range(3)] == [1, 0, 0]
    (run,) = world.prefect.runs.values()
    assert run["parameters"] == {"model": "a"}
    assert world.outbox.pending() == 0


def test_while_prefect_is_down_everything_is_kept_and_afterwards_handed_over_once(
    world: World,
) -> None:
    with world.prefect.up():
        pass
    for model in ("a", "b"):
        world.arrives(model)
        assert world.handover.once() == 0
        world.now += 1000
    world.prefect.status = 503
    with world.prefect.up():
        assert world.handover.once() == 0
    world.restart()
    world.arrives("c")
    world.prefect.status = None
    with world.prefect.up():
        assert world.handover.once() == 3
        assert world.arrives("a", "b", "c") == 0
        assert world.handover.once() == 0
    assert world.prefect.models == ["a", "b", "c"]


def test_prefect_is_left_alone_for_longer_the_longer_it_is_down(world: World) -> None:
    world.arrives("a")
    world.prefect.status = 503
    with world.prefect.up():
        tries = []
        for second in range(2000):
            before, world.now = world.prefect.requests, NOW + second
            world.handover.once()
            if world.prefect.requests > before:
                tries.append(second)
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits[0] <= 2 and max(waits) <= 301 and waits[-1] >= 150


def test_a_crash_after_prefect_took_it_and_before_that_was_noted_doubles_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.arrives("a")
    with world.prefect.up():
        with monkeypatch.context() as crash:
            crash.setattr(world.outbox, "done", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                world.handover.once()
        assert (world.prefect.models, world.outbox.pending()) == (["a"], 1)
        world.restart()
        assert world.handover.once() == 1
    assert (world.prefect.models, world.prefect.asked) == (["a"], 2)


def test_two_processes_on_one_outbox_double_nothing(world: World) -> None:
    world.arrives("a", "b")
    twin = Outbox(world.path)
    other = Handover(twin, world.api, lambda: world.tracked, clock=lambda: world.now)
    with world.prefect.up():
        world.handover.once()
        other.once()
    assert world.prefect.models == ["a", "b"]
    twin.close()


def test_one_that_prefect_does_not_take_stands_in_no_others_way(world: World) -> None:
    world.prefect.refuses = {"a"}
    world.arrives("a", "b")
    with world.prefect.up():
        assert world.handover.once() == 1
        assert world.outbox.pending() == 1
        world.prefect.refuses = set()
        world.now += 10
        assert world.handover.once() == 1
    assert world.prefect.models == ["a", "b"]


def test_a_deployment_that_is_not_there_yet_is_waited_for(world: World) -> None:
    world.prefect.deployed = False
    world.arrives("a")
    with world.prefect.up():
        assert world.handover.once() == 0
        world.prefect.deployed = True
        world.now += 10
        assert world.handover.once() == 1


def test_a_model_that_is_not_tracked_any_more_starts_nothing(world: World) -> None:
    world.arrives("a", "b")
    world.tracked = {"b"}
    with world.prefect.up():
        assert world.handover.once() == 1
        # Its track may have been unreadable for a moment.
        assert world.outbox.pending() == 1
        world.now += UNTRACKED_SECONDS + 1
        assert world.handover.once() == 0
    assert world.outbox.pending() == 0
    assert world.prefect.models == ["b"]


def test_prefects_own_secrets_are_sent_as_it_wants_them(world: World) -> None:
    url = lambda: f"http://127.0.0.1:{world.prefect.port}/api"  # noqa: E731
    with world.prefect.up():
        for api in (PrefectApi(url, key="pnu_1"), PrefectApi(url, auth="admin:pass:word")):
            api.create_flow_run("track/track", {"model": "a"}, idempotency_key="k", name="n")
            api.close()
        basic = base64.b64encode(b"admin:pass:word").decode()
        assert world.prefect.authorizations == {"Bearer pnu_1", f"Basic {basic}"}
        world.prefect.status = 401
        with pytest.raises(Unavailable, match="401"):
            world.api.create_flow_run("track/track", {}, idempotency_key="k", name="n")


STORING = """
import asyncio, sys
from pathlib import Path
from lockgate.adapters.webhooks.outbox import Outbox
from lockgate.domain.webhooks import Delivery

async def store(outbox, n):
    await outbox.store([Delivery(model="a", source="hub:org/a", revision=str(n))], 0.0)
    print(n, flush=True)

async def main():
    outbox = Outbox(Path(sys.argv[1]))
    n = 0
    while True:
        await asyncio.gather(*(store(outbox, n + k) for k in range(20)))
        n += 20

asyncio.run(main())
"""


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "deliveries.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", STORING, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = {process.stdout.readline().strip() for _ in range(110)}
    process.send_signal(signal.SIGKILL)
    acknowledged |= {
        line.strip()
        for line in process.stdout.read().splitlines(keepends=True)
        if line.endswith("\n")
    }
    process.wait(10)
    outbox = Outbox(path)
    there = {pending.delivery.revision for pending in outbox.due(1.0, limit=10**6)}
    outbox.close()
    assert len(acknowledged) >= 110 and acknowledged <= there
