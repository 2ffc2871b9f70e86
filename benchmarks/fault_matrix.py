"""Faults during a real canary, under traffic: `python -m benchmarks.fault_matrix --workspace DIR` prints a table.

DIR is a workspace in which `lockgate demo --keep` ran, so that its candidates are measured: each fault releases one of them anew,
breaks one thing in the middle of the canary or of the rollback, and waits for the end. A row says what became of the release,
whether every generation is one commit, how long it took from the fault to the end, and how many requests failed that began a
second or more after the fault. Takes one to four minutes a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockgate.cli.prefect_server import ensure_server
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import DenialLifted
from lockgate.settings import Settings
from tasks import driving
from tasks.workspace import Workspace

MODEL, ENVIRONMENT = "smollm2", "local"
BEGIN_SECONDS, END_SECONDS = 300.0, 420.0
OUTAGE_SECONDS = 30.0
SPECS = ("release-1", "release-2")
"""Two candidates that take turns: whichever is not stable is released."""


@dataclass
class Site:
    """The workspace under test."""

    workspace: Path
    scratch: Path
    driver: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "lockgate.cli", *arguments]
        with (self.scratch / "commands.log").open("ab") as log:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=300, check=False
            )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lockgate.cli", *arguments]
        with (self.scratch / "driver.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def state(self) -> ReleaseState:
        """As the remote has it, wherever a fault has put it meanwhile."""
        repository = Workspace.current().gitops
        repository.sync()
        return repository.read_state(MODEL, ENVIRONMENT)

    @property
    def remote(self) -> Path:
        return Path(Settings().git_remote)

    def pod(self, *, stable: bool) -> int | None:
        state = self.state()
        slot = state.stable if stable else state.canary_slot
        found = Workspace.current().cluster().slot_status(MODEL, slot) if slot else None
        return found.pods[0].pid if found is not None and found.pods else None


def _kill(pid: int | None) -> None:
    if pid is None:
        raise SystemExit("there is no process to kill")
    os.kill(pid, signal.SIGKILL)


def kill_flow(site: Site) -> None:
    assert site.driver is not None
    os.killpg(site.driver.pid, signal.SIGKILL)
    site.driver.wait()


def kill_agent(_: Site) -> None:
    _kill(Workspace.current().cluster().status().pid)


def kill_gateway(_: Site) -> None:
    _kill(Workspace.current().cluster().status().gateway.pid)


def kill_canary(site: Site) -> None:
    _kill(site.pod(stable=False))


def kill_stable(site: Site) -> None:
    _kill(site.pod(stable=True))


def take_remote_away(site: Site) -> None:
    away = site.remote.with_suffix(".away")
    site.remote.rename(away)
    time.sleep(OUTAGE_SECONDS)
    away.rename(site.remote)


def _with_hook(site: Site, script: str) -> None:
    hook = site.remote / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)
    time.sleep(OUTAGE_SECONDS)
    hook.unlink()


def refuse_pushes(site: Site) -> None:
    _with_hook(site, "exit 1")


def slow_pushes(site: Site) -> None:
    _with_hook(site, "sleep 5")


def take_store_away(site: Site) -> None:
    store = Settings().layout.store
    away = store.with_suffix(".away")
    store.rename(away)
    time.sleep(OUTAGE_SECONDS)
    away.rename(store)


FAULTS: dict[str, Callable[[Site], None]] = {
    "flow killed": kill_flow,
    "agent killed": kill_agent,
    "gateway killed": kill_gateway,
    "canary server killed": kill_canary,
    "stable server killed": kill_stable,
    "Git remote away 30 s": take_remote_away,
    "Git remote refuses 30 s": refuse_pushes,
    "Git remote slow 30 s": slow_pushes,
    "image store away 30 s": take_store_away,
}


def begin(site: Site) -> None:
    """Release the candidate that is not stable, and wait until the middle of its last canary step."""
    state = site.state()
    for denied in state.denylist:
        lifted = DenialLifted(candidate=denied.candidate, by="fault matrix", reason="again")
        driving.commit(MODEL, ENVIRONMENT, lifted)
    stable = state.occupant(state.stable) if state.stable is not None else None
    specs = [site.workspace / "specs" / f"{name}.yaml" for name in SPECS]
    last = stable.candidate.model.digest if stable is not None else None
    for spec in specs:
        site.driver = site.start("release", str(spec))
        deadline = time.monotonic() + BEGIN_SECONDS
        while time.monotonic() < deadline:
            now = site.state()
            trace = Settings().layout.trace(MODEL, ENVIRONMENT, now.began)
            looks = len(trace.read_bytes().splitlines()) if trace.exists() else 0
            if now.phase is Phase.CANARY and now.weight >= 50 and looks > 20:
                return
            if site.driver.poll() is not None:
                break  # that one is stable already
            time.sleep(1)
    raise SystemExit(f"no release reached its last canary step; stable is {last}")


def settle(site: Site) -> ReleaseState:
    """Reconcile until nothing is under way: what a scheduler would do."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        state = site.state()
        if state.phase in (Phase.STABLE, Phase.HELD, Phase.AWAITING_APPROVAL):
            return state
        if site.driver is None or site.driver.poll() is not None:
            site.run("reconcile", MODEL)
        time.sleep(2)
    return site.state()


def run(site: Site, name: str, when: str) -> str:
    """One row of the table."""
    begin(site)
    before = site.state().generation
    url = Workspace.current().cluster().gateway_url(MODEL)
    rows = site.scratch / "rows.jsonl"
    traffic = subprocess.Popen(
        [sys.executable, "-m", "serving.local.traffic", "--url", url, "--model", MODEL,
         "--rate", "3", "--seconds", "1800", "--out", str(rows)],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(5)
        if when == "rollback":
            site.run("rollback", MODEL, "--reason", "fault matrix")
        began = time.time()
        FAULTS[name](site)
        ended = settle(site)
        seconds = time.time() - began
    finally:
        traffic.terminate()
        traffic.wait(180)
    history = Workspace.current().gitops.history(MODEL, ENVIRONMENT)
    generations = [
        int(entry.trailers["Lockgate-Generation"]) for entry in reversed(history) if entry.release
    ]
    whole = generations == list(range(generations[0], generations[0] + len(generations)))
    sent = [json.loads(line) for line in rows.read_text().splitlines()]
    late = [row for row in sent if row["start"] >= began + 1]
    failed = [row for row in late if not row["ok"]]
    rows.unlink()
    outcome = f"{ended.last.outcome}" if ended.last and ended.phase is Phase.STABLE else ended.phase
    verdict = ended.verdicts[-1].verdict if ended.verdicts else "none"
    kept = f"{ended.generation - before} commits" if whole else "LOST OR DOUBLED"
    return f"| {name} | {when} | {verdict} | {outcome} | {kept} | {seconds:.0f} | {len(failed)} of {len(late)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append")
    parser.add_argument("--when", choices=("canary", "rollback"), action="append")
    arguments = parser.parse_args()
    workspace = arguments.workspace.absolute()
    os.environ["LOCKGATE_WORKSPACE"] = str(workspace)
    scratch = workspace / "fault-matrix"
    scratch.mkdir(exist_ok=True)
    site = Site(workspace, scratch)
    site.run("up")
    ensure_server(Settings())
    print("| fault | during | last verdict | outcome | Git | seconds | failed, begun 1 s after |")
    print("|---|---|---|---|---|---|---|")
    for when in arguments.when or ("canary", "rollback"):
        for name in arguments.fault or FAULTS:
            if when == "rollback" and name in ("flow killed", "canary server killed"):
                continue  # the rollback is one commit, which a person has made; the canary is of no use any more
            print(run(site, name, when), flush=True)


if __name__ == "__main__":
    main()
