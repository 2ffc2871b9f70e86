"""How fast deliveries are answered at a steady rate: `lockgate hooks` as a process of its own, real disk, no Prefect.

    python -m benchmarks.webhooks [--rate 200] [--seconds 30] [--workspace DIR]

An open loop: every delivery has its moment, and its answer is timed from that moment on, so a slow answer delays none of the
others and hides nothing. All seven senders in turn, each delivery a new commit, all kept (202), each with one fsync at most
behind it. Prefect is down, so every delivery stays in the database, and the hand-over tries in the background.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx

from lockgate.adapters.webhooks import Outbox
from lockgate.domain import gitops
from lockgate.domain.webhooks import Sender
from tests.integration.git.repositories import make_remote, somebody_pushes
from tests.unit.webhooks import payloads
from tests.unit.webhooks.payloads import COMMIT, IMAGE, SECRET, Sent

KINDS = (
    payloads.hub, payloads.github_push, payloads.gitlab_push, payloads.gitea_push,
    payloads.distribution, payloads.harbor, payloads.generic,
)  # fmt: skip


def delivery(number: int) -> Sent:
    """The number-th delivery, of a commit or image that no other has."""
    made = KINDS[number % len(KINDS)]()
    text = json.dumps(made.payload).replace(COMMIT, f"{number:040x}")
    return replace(made, payload=json.loads(text.replace(IMAGE, f"sha256:{number:064x}")))


async def measure(address: str, rate: float, seconds: float) -> tuple[list[float], dict[int, int]]:
    """Seconds from each delivery's moment to its answer, and how often each status came."""
    took: list[float] = []
    statuses: dict[int, int] = {}
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)

    async with httpx.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:

        async def send(sent: Sent, headers: dict[str, str], at: float) -> None:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            url = f"{address}/hooks/{sent.sender.value}"
            answer = await client.post(url, content=sent.body, headers=headers)
            took.append(time.perf_counter() - at)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

        now = int(time.time())
        # From one on: forty zeros are what a deleted branch has.
        ready = [delivery(number) for number in range(1, int(rate * seconds) + 1)]
        signed = [(sent, sent.signed(now=now)) for sent in ready]
        begin = time.perf_counter() + 0.5
        await asyncio.gather(
            *(send(sent, headers, begin + n / rate) for n, (sent, headers) in enumerate(signed))
        )
    return took, statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--workspace", type=Path, help="on the disk to be measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.workspace) as name:
        root = Path(name)
        make_remote(root)
        for track in payloads.tracks():
            text = gitops.dump_yaml(track.to_data())
            somebody_pushes(root, f"models/{track.model}/track.yaml", text)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            **{f"LOCKGATE_HOOKS_{sender.name}": SECRET for sender in Sender},
            "LOCKGATE_WORKSPACE": str(root / "workspace"),
            "LOCKGATE_REMOTE": str(root / "remote.git"),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        }
        address = f"http://127.0.0.1:{port}"
        with (root / "hooks.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lockgate.cli", "hooks", "--port", str(port)],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                _wait(address, process, root / "hooks.log")
                took, statuses = asyncio.run(measure(address, asked.rate, asked.seconds))
            finally:
                process.terminate()
                process.wait(30)
        outbox = Outbox(root / "workspace" / "hooks" / "deliveries.sqlite")
        kept = outbox.pending()
        outbox.close()
    percent = statistics.quantiles(took, n=1000, method="inclusive")
    print(f"{len(took)} deliveries, {asked.rate:g}/s: statuses {statuses}, {kept} on disk")
    for label, place in (("p50", 499), ("p90", 899), ("p99", 989), ("p99.9", 998)):
        print(f"{label:<6} {1000 * percent[place]:7.1f} ms")
    print(f"max    {1000 * max(took):7.1f} ms; load average {os.getloadavg()[0]:.1f}")


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"it ended at once:\n{log.read_text()}")
        try:
            if httpx.get(f"{address}/healthz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    sys.exit(f"it is not up after two minutes:\n{log.read_text()}")


if __name__ == "__main__":
    main()
