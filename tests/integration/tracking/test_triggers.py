"""From a webhook, and from the command line, to flow runs of a real Prefect server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from lockgate.cli.prefect_server import stop_server
from lockgate.domain import gitops
from lockgate.settings import Settings
from tasks.lease import WAIT_SECONDS
from tests.integration.git.repositories import make_remote, somebody_pushes
from tests.integration.tracking.moving_hub import MovingHub
from tests.integration.tracking.test_looking import FIRST, RELEASE, SECOND, TRACK
from tests.unit.webhooks.payloads import SECRET, hub

ROOT = Path(__file__).parents[3]
START = "from lockgate.cli.prefect_server import ensure_server as s; from lockgate.settings import Settings; print(s(Settings()))"
DEPLOY = """
from prefect.deployments.runner import EntrypointType
from flows.track import release_tracked, track
for flow in (track, release_tracked):
    flow.to_deployment(name=flow.name, entrypoint_type=EntrypointType.MODULE_PATH).apply()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


@dataclass
class Site:
    environment: dict[str, str]
    url: str

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Runs of a flow's deployment."""
        found = httpx.get(f"{self.url}/deployments/name/{flow}/{flow}", timeout=30).json()
        asked = {"deployments": {"id": {"any_": [found["id"]]}}}
        return list(httpx.post(f"{self.url}/flow_runs/filter", json=asked, timeout=30).json())

    @contextmanager
    def hooks(self, log: Path, **changes: str) -> Iterator[str]:
        """A process of `lockgate hooks`; yields its address. Killed at the end, without a warning."""
        port = free_port()
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "lockgate.cli", "hooks", "--port", str(port)],
                env={**self.environment, "LOCKGATE_HOOKS_HUB": SECRET, **changes},
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        address = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return httpx.get(f"{address}/healthz", timeout=5).is_success
            except httpx.HTTPError:
                return False

        try:
            wait_until(up, 120, f"the endpoints are up (log: {log})")
            yield address
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    make_remote(root)
    somebody_pushes(root, "specs/m.yaml", gitops.dump_yaml(RELEASE))
    somebody_pushes(root, "models/m/track.yaml", gitops.dump_yaml(TRACK))
    workspace = root / "workspace"
    with MovingHub(branches={"main": FIRST}).serving() as endpoint:
        unset = ("PREFECT_API_URL", "PREFECT_HOME")
        environment = {
            **{key: value for key, value in os.environ.items() if key not in unset},
            "PYTHONPATH": str(ROOT),
            "LOCKGATE_WORKSPACE": str(workspace),
            "LOCKGATE_REMOTE": str(root / "remote.git"),
            "LOCKGATE_STEP_RUNNER": "deployment",
            "HF_ENDPOINT": endpoint,
        }
        made = Site(environment, "")
        try:
            made.url = made.python("-c", START).strip()
            environment.update(
                PREFECT_API_URL=made.url, PREFECT_HOME=str(root / "prefect"), DO_NOT_TRACK="1"
            )
            made.python("-c", DEPLOY)
            yield made
        finally:
            stop_server(Settings(workspace=workspace))


def test_a_delivery_becomes_one_flow_run_though_prefect_was_down_and_the_process_was_killed(
    site: Site, tmp_path: Path
) -> None:
    def send(address: str, commit: str) -> int:
        sent = hub(commit)
        answer = httpx.post(
            f"{address}/hooks/hub", content=sent.body, headers=sent.signed(), timeout=30
        )
        return answer.status_code

    log = tmp_path / "hooks.log"
    down = f"http://127.0.0.1:{free_port()}/api"
    with site.hooks(log, PREFECT_API_URL=down) as address:
        assert [send(address, FIRST), send(address, FIRST)] == [202, 200]
        wait_until(lambda: "does not answer" in log.read_text(), 60, "it noticed")
    assert site.runs("track") == []
    # Git is away too now: the tracked models are known from before.
    with site.hooks(log, LOCKGATE_REMOTE=str(tmp_path / "gone.git")) as address:
        wait_until(lambda: len(site.runs("track")) == 1, 60, "the flow run")
        assert [send(address, FIRST), send(address, SECOND)] == [200, 202]
        wait_until(lambda: len(site.runs("track")) == 2, 60, "the second flow run")
    assert [run["parameters"] for run in site.runs("track")] == [{"model": "m"}] * 2
    assert SECRET not in log.read_text()


def test_a_look_starts_one_release_and_another_only_when_that_has_ended_without_an_end(
    site: Site,
) -> None:
    def look() -> dict[str, Any]:
        told = json.loads(site.python("-m", "lockgate.cli", "track", "run", "m", "--json"))
        assert told[1]["reason"] == "nothing of this track is stable in staging now"
        return dict(told[0])

    first, again = look(), look()
    assert first["action"] == "started" and first["flow_run"] == again["flow_run"]
    (run,) = site.runs("release-tracked")
    request = run["parameters"]["tracked"]["request"]
    assert request["spec"]["source"] == f"hf://org/name@{FIRST}"
    assert request["requested_by"] == "Somebody <somebody@example.com>"
    crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
    answer = httpx.post(f"{site.url}/flow_runs/{run['id']}/set_state", json=crashed, timeout=30)
    assert answer.is_success
    assert look()["flow_run"] != first["flow_run"]
    assert len(site.runs("release-tracked")) == 2


ALONE = """
import sys, time
from pathlib import Path
from tasks.lease import release_alone
name, log, go = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def say(word):
    with log.open("a") as file:
        file.write(f"{word} {name}\\n")
say("asks")
with release_alone("m", "prod"):
    say("begins")
    while not go.exists():
        time.sleep(0.1)
    say("ends")
"""


def test_unattended_releases_of_one_model_run_one_after_the_other(
    site: Site, tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", ALONE, name, str(log), str(go)], env=site.environment
        )

    def said(line: str) -> bool:
        return log.exists() and line in log.read_text().splitlines()

    first = start("first")
    wait_until(lambda: said("begins first"), 120, "the first one runs")
    second = start("second")
    wait_until(lambda: said("asks second"), 120, "the second one wants to")
    go.touch()
    assert first.wait(120) == 0 and second.wait(120) == 0
    words = [
        "asks first",
        "begins first",
        "asks second",
        "ends first",
        "begins second",
        "ends second",
    ]
    assert log.read_text().splitlines() == words


DRIVE = """
from tasks.lease import LeaseHeld, release_lease
with release_lease("m", "prod"):
    print("driving")
    try:
        with release_lease("m", "prod"):
            print("two drive")
    except LeaseHeld as held:
        print(held.message)
"""


class _SlowToGrant(BaseHTTPRequestHandler):
    """Passes everything on to a Prefect server, leases after more seconds than a driver waits for another."""

    target = ""

    def _pass_on(self) -> None:
        if "increment-with-lease" in self.path:
            time.sleep(WAIT_SECONDS + 1)
        length = int(self.headers.get("content-length", 0))
        kept = {
            k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")
        }
        answer = httpx.request(
            self.command,
            self.target + self.path,
            content=self.rfile.read(length),
            headers=kept,
            timeout=30,
        )
        self.send_response(answer.status_code)
        for name in ("content-type", "retry-after"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_two_never_drive_one_release_and_a_slow_server_is_nobody_who_drives_it(site: Site) -> None:
    _SlowToGrant.target = site.url.removesuffix("/api")
    with ThreadingHTTPServer(("127.0.0.1", 0), _SlowToGrant) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        before = site.environment["PREFECT_API_URL"]
        site.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{proxy.server_port}/api"
        try:
            said = site.python("-c", DRIVE)
        finally:
            site.environment["PREFECT_API_URL"] = before
            proxy.shutdown()
    assert said.splitlines() == ["driving", "another flow is driving m in prod"]


BY_HAND = """
import sys, time
from pathlib import Path
from lockgate.errors import Refused
from tasks import turns
from tasks.lease import LeaseHeld
class Spec:
    model, environment = "m", "prod"
log, looks = Path(sys.argv[1]), iter([True, True])
def look(workspace, spec):
    if next(looks, False):
        raise Refused("release r is under way")
turns.refuse_beside_another = look
turns.logger.warning = lambda text, *values: log.write_text(text % values)
try:
    with turns.turn(Spec(), wait=False, patience=1):
        sys.exit("it began beside the other one")
except LeaseHeld as held:
    print(held.diagnostics(), flush=True)
with turns.turn(Spec(), wait=True, every=0.1):
    print("begins", flush=True)
"""


def test_a_release_by_hand_is_refused_beside_one_that_is_being_made_or_waits_its_turn(
    site: Site, tmp_path: Path
) -> None:
    log, go, told = tmp_path / "log", tmp_path / "go", tmp_path / "told"
    other = subprocess.Popen(
        [sys.executable, "-c", ALONE, "other", str(log), str(go)], env=site.environment
    )
    wait_until(lambda: log.exists() and "begins other" in log.read_text(), 120, "the other one")
    by_hand = subprocess.Popen(
        [sys.executable, "-c", BY_HAND, str(told)],
        env=site.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert by_hand.stdout is not None
    refused = by_hand.stdout.readline()
    assert "another release of m to prod runs" in refused
    assert "--wait" in refused + by_hand.stdout.readline()
    assert by_hand.poll() is None and other.poll() is None
    go.touch()
    assert other.wait(120) == 0
    assert by_hand.stdout.readlines()[-1] == "begins\n" and by_hand.wait(120) == 0
    # Git had one under way for a while, after the other process had ended.
    assert told.read_text() == "waiting: release r is under way"


SIDE_BY_SIDE = """
import threading
from functools import partial
import flows.canary, flows.reconcile
from lockgate.domain.release_state import ReleaseState
from tasks.lease import release_lease
a, b, c, d = (ReleaseState(model=name, environment="prod") for name in "abcd")
both, later = threading.Barrier(2), threading.Event()
class Found:
    def __call__(self, environment, model):
        return [a, b, d]
    def fn(self, environment, model):
        return [a, b, c, d]
class Driving(type(flows.canary.driving)):
    releases_under_way = Found()
    describe = staticmethod(lambda state: "ended")
    read_state = staticmethod(lambda model, environment: ReleaseState(model=model, environment=environment))
    def observe(self, state):
        if state.model == "c":
            later.set()
        elif state.model == "d":
            raise ValueError("d cannot be driven")
        else:
            both.wait(60)
            assert later.wait(60), "what was left alone meanwhile was not found"
flows.canary.driving = flows.reconcile.driving = Driving("driving")
flows.reconcile.drive_each = partial(flows.reconcile.drive_each, every=4)
try:
    flows.reconcile.reconcile(environment="prod")
except ValueError as error:
    print(error)
with release_lease("a", "prod"):
    Found.__call__ = Found.fn = lambda *_: [a, c]
    print(*sorted(flows.reconcile.reconcile(environment="prod")), sep="; ")
"""


FOLLOW = """
import threading
import flows.canary
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.steps import CanaryRequest
from tasks import driving, following
from tasks.lease import LeaseHeld, release_lease
state, over, seen = ReleaseState(model="f", environment="prod"), [False], threading.Event()
def read_state(model, environment):
    seen.set()
    return state
driving.read_state.fn = read_state
class Driving(type(driving)):
    read_state = staticmethod(lambda *_: state)
    observe = staticmethod(lambda _: print("driven"))
flows.canary.driving = Driving("driving")
following.FOLLOW_SECONDS = 0.2
following.is_over = flows.canary.is_over = lambda _: over[0]
def begin():
    flows.canary.see_through(CanaryRequest(model="f", environment="prod"))
    print("ended")
for over[0] in (True, False):
    seen.clear()
    thread = threading.Thread(target=begin)
    with release_lease("f", "prod"):
        thread.start()
        assert seen.wait(60)
        if over[0]:
            thread.join(60)
        print("the other one ends", flush=True)
    thread.join(60)
"""


def test_who_begins_a_release_sees_it_through_though_another_flow_took_it_up(site: Site) -> None:
    said = site.python("-c", FOLLOW)
    assert said.splitlines() == [
        *("ended", "the other one ends"),
        *("the other one ends", "driven", "ended"),
    ]


def test_releases_are_driven_side_by_side_and_what_is_left_alone_meanwhile_is_found(
    site: Site,
) -> None:
    said = site.python("-c", SIDE_BY_SIDE)
    assert said.splitlines() == [
        "d cannot be driven",
        "a: another flow is driving a in prod; c: ended",
    ]
    asked = {"flows": {"name": {"any_": ["canary"]}}}
    runs = httpx.post(f"{site.url}/flow_runs/filter", json=asked, timeout=30).json()
    completed = {
        run["name"]
        for run in runs
        if run["parent_task_run_id"] and run["state_type"] == "COMPLETED"
    }
    assert completed >= {"canary-a-prod", "canary-b-prod", "canary-c-prod"}


def test_an_event_is_known_to_the_server_with_model_and_payload(site: Site) -> None:
    tell = "from tasks.events import tell; tell('lockgate.canary.failed', 'm', 'prod', release='r')"
    site.python("-c", tell)
    asked = {"filter": {"event": {"name": ["lockgate.canary.failed"]}}}
    found: list[dict[str, Any]] = []

    def known() -> bool:
        answer = httpx.post(f"{site.url}/events/filter", json=asked, timeout=30)
        found[:] = answer.json()["events"]
        return bool(found)

    wait_until(known, 60, "the event is known")
    assert found[0]["resource"]["lockgate.model"] == "m"
    assert found[0]["payload"] == {"release": "r"}
