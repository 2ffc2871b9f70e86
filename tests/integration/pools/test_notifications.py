"""Messages to people: set up on a real Prefect server, sent by it when an event of Lockgate's arrives, to a receiver of apprise's."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks import events
from tasks.notifying import MESSAGES
from tests.integration.pools.conftest import PrefectServer
from tests.integration.tracking.test_triggers import wait_until

EVENTS = """
from tasks.events import tell
tell("lockgate.release.held", "m", "prod", reason="two <looks> were undecided", release="m-1", candidate="sha256:c")
tell("lockgate.canary.raised", "m", "prod", reason="nobody has to hear of this", release="m-1")
"""


class Receiver:
    """What `json://` of apprise sends to."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                receiver.messages.append(json.loads(self.rfile.read(length)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"json://127.0.0.1:{self.server.server_address[1]}/with-a-secret-part"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def lockgate(server: PrefectServer, *arguments: str, code: int = 0, **changes: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lockgate.cli", *arguments], env=server.environment | changes,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def automations(server: PrefectServer) -> dict[str, Any]:
    found = {one["name"]: one for one in server.ask("POST", "automations/filter", {})}
    return {name: one for name, one in found.items() if name.startswith("lockgate: ")}


def test_an_event_that_a_person_has_to_hear_of_becomes_a_message(
    server: PrefectServer, receiver: Receiver, tmp_path: Path
) -> None:
    place = {"LOCKGATE_NOTIFICATIONS_URL": receiver.url}
    said = lockgate(server, "notifications", "set", **place)
    assert said.splitlines() == [message.automation for message in MESSAGES]
    assert receiver.messages.pop()["message"] == "Messages about releases come here."
    # A second time changes nothing; another choice leaves no other automation.
    lockgate(server, "notifications", "set", "--no-try", **place)
    made = automations(server)
    assert made.keys() == {message.automation for message in MESSAGES}
    held = events.OF_TRANSITIONS[events.TransitionKind.HOLD]
    assert made[f"lockgate: {held}"]["enabled"]
    assert "with-a-secret-part" not in json.dumps([made, said])

    subprocess.run([sys.executable, "-c", EVENTS], env=server.environment, timeout=120, check=True)
    wait_until(lambda: bool(receiver.messages), 120, "the message")
    (message,) = receiver.messages
    assert message["title"] == "m in prod: held"
    assert message["message"].splitlines()[:2] == [
        "two <looks> were undecided", "Release m-1, candidate sha256:c",
    ]  # fmt: skip
    assert "lockgate explain m`" in message["message"]

    lockgate(server, "notifications", "set", "--no-try", "--event", held, **place)
    assert automations(server).keys() == {f"lockgate: {held}"}
    lockgate(server, "notifications", "remove")
    assert automations(server) == {}
    blocks = server.ask("POST", "block_documents/filter", {})
    assert "lockgate-notifications" not in {block["name"] for block in blocks}


def test_what_cannot_be_sent_or_is_no_event_is_said_and_makes_nothing(
    server: PrefectServer,
) -> None:
    place = {"LOCKGATE_NOTIFICATIONS_URL": "nosuch://word-of-the-address"}
    said = lockgate(server, "notifications", "set", code=1, **place)
    assert "no message could be sent" in said and "word-of-the-address" not in said
    said = lockgate(server, "notifications", "set", "--event", "lockgate.none", code=2, **place)
    assert "no message is sent for lockgate.none" in said
    assert "where to?" in lockgate(server, "notifications", "set", code=2)
    assert automations(server) == {}
