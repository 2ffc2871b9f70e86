"""Faults during a real canary, under traffic: `python -m benchmarks.fault_matrix --workspace DIR` prints a table.

DIR is a workspace in which `lockgate demo --keep` ran. Each fault releases the int8 model once more with another argument, breaks
one thing in the middle of the canary or of the rollback, and waits for the end, which `lockgate reconcile` brings about where the
driver died. A row says what became of the release, whether every generation is one commit, how long it took from the fault to
the end, and how many requests failed: of those that began a second or more after the fault, and of all since the release began. The
margins are wide: the faults are the test here, not the judge's power. Takes two to four minutes a fault.
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
from typing import Any

import yaml

from lockgate.cli.prefect_server import ensure_server
from lockgate.cli.reconciler import stop_reconciler
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import DenialLifted
from lockgate.settings import Settings
from tasks import driving
from tasks.workspace import Workspace

MODEL, ENVIRONMENT = "smollm2", "local"
BEGIN_SECONDS, END_SECONDS = 420.0, 420.0
OUTAGE_SECONDS = 30.0
BUDGET_SECONDS = 80.0
"""Longer than a dead driver's lease, so that the next one may go on."""
RATE = 2.5
SEQUENCES = (24, 25)
"""Two candidates of one model take turns: whichever is not stable is released."""

SPEC: dict[str, Any] = {
    "evaluation": {
        "tasks": [
            {"name": "lockgate_numbers", "metric": "exact_match,strip", "margin": 0.6, "floor": 0.2}
        ],
        "limit": 24,
    },
    "benchmark": {
        "profiles": [
            {
                "name": "short",
                "requests": 8,
                "prompt_tokens": 32,
                "output_tokens": 8,
                "concurrency": 1,
            }
        ],
        "compare": "limits",
        "max_ttft_p50_ms": 5000,
    },
}
"""Little is measured, and much is allowed."""
CANARY: dict[str, Any] = {
    "steps": [{"weight": 50, "min_seconds": 40, "max_seconds": 300}],
    "margins": {"latency": 3.0, "errors": 0.2, "output_length": 0.5, "finish_reasons": 0.5},
    "outage_budget_seconds": BUDGET_SECONDS,
    "on_insufficient_data": "rollback",
}


@dataclass
class Site:
    """The workspace under test."""

    workspace: Path
    scratch: Path
    driver: subprocess.Popen[bytes] | None = None

    @property
    def control(self) -> Path:
        return self.scratch / "metrics-fault.json"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.faulty_metrics", str(self.control), *arguments]

    def run(self, *arguments: str) -> None:
        with (self.scratch / "commands.log").open("ab") as log:
            subprocess.run(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=END_SECONDS,
                check=False,
            )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.scratch / "driver.log").open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def state(self) -> ReleaseState:
        """As the remote has it, wherever a fault has put it meanwhile."""
        repository = Workspace.current().gitops
        repository.sync()
        return repository.read_state(MODEL, ENVIRONMENT)

    @property
    def remote(self) -> Path:
        return Path(Settings().git_remote)

    def stable_ready(self) -> bool:
        state = self.state()
        slot = (
            Workspace.current()
            .cluster()
            .status()
            .slot(MODEL, (state.stable or state.free_slot).value)
        )
        return slot is not None and slot.updated > 0

    def pod(self, *, stable: bool) -> int | None:
        state = self.state()
        slot = state.stable if stable else state.free_slot
        found = Workspace.current().cluster().status().slot(MODEL, slot.value) if slot else None
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
    hook.parent.mkdir(exist_ok=True)
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


def kill_flow_ten_times(site: Site) -> None:
    """Each driver that takes the release up is killed once it has judged some scrapes, until ten are dead."""
    for kill in range(10):
        if kill:
            site.driver = site.start("reconcile", MODEL)
        was = _looks(site)
        deadline = time.monotonic() + BUDGET_SECONDS
        while _looks(site) < was + 8 and time.monotonic() < deadline:
            if site.driver is not None and site.driver.poll() is not None:
                site.driver = site.start("reconcile", MODEL)  # the dead one's lease is not over yet
            time.sleep(1)
        kill_flow(site)


def _looks(site: Site) -> int:
    """Lines in the trace of the step under way."""
    trace = Settings().layout.trace(MODEL, ENVIRONMENT, site.state().began)
    return len(trace.read_bytes().splitlines()) if trace.exists() else 0


def _metrics(
    mode: str, *, everything: bool, seconds: float = OUTAGE_SECONDS
) -> Callable[[Site], None]:
    """A fault of the metrics alone: of the canary's server, or of both and the gateway."""

    def fault(site: Site) -> None:
        canary = site.state().free_slot
        slots = [canary, canary.other] if everything else [canary]
        site.control.write_text(json.dumps({"mode": mode, "slots": slots, "gateway": everything}))
        time.sleep(seconds)
        site.control.unlink()

    return fault


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
    "metrics hang 30 s": _metrics("hang", everything=True),
    "canary's metrics hang 30 s": _metrics("hang", everything=False),
    "canary's metrics absent 30 s": _metrics("absent", everything=False),
    "canary's metrics are NaN 30 s": _metrics("nan", everything=False),
    "canary's counters reset and back": _metrics("reset", everything=False),
    "metrics hang beyond the budget": _metrics(
        "hang", everything=True, seconds=BUDGET_SECONDS + 40
    ),
    "flow killed ten times": kill_flow_ten_times,
}
IN_ROLLBACK = (
    "agent killed",
    "gateway killed",
    "canary server killed",
    "stable server killed",
    "Git remote away 30 s",
    "Git remote refuses 30 s",
    "Git remote slow 30 s",
    "image store away 30 s",
    "flow killed",
)
"""Nothing is judged any more then."""


def write_specs(site: Site) -> list[Path]:
    """The two candidates' specs."""
    data = yaml.safe_load((site.workspace / "specs" / "release-2.yaml").read_text())
    paths = []
    for sequences in SEQUENCES:
        path = site.scratch / f"sequences-{sequences}.yaml"
        serving = {**data["serving"], "max_num_seqs": sequences}
        spec = {**data, **SPEC, "serving": serving, "canary": {**data["canary"], **CANARY}}
        path.write_text(yaml.safe_dump(spec))
        paths.append(path)
    return paths


def begin(site: Site) -> None:
    """Release the candidate that is not stable, and wait until the middle of its canary step."""
    if site.state().release_under_way is not None:
        # Held by the fault before, or left over by a run that was cut off: a person would end it.
        site.run("rollback", MODEL, "--reason", "fault matrix: the next fault")
        settle(site)
    state = site.state()
    for denied in state.denylist:
        lifted = DenialLifted(candidate=denied.candidate, by="fault matrix", reason="again")
        driving.commit(MODEL, ENVIRONMENT, lifted)
    stable = state.occupant(state.stable) if state.stable is not None else None
    was = stable.candidate.serving.max_num_seqs if stable is not None else None
    specs = write_specs(site)
    spec = specs[0] if was != SEQUENCES[0] else specs[1]
    site.driver = site.start("release", str(spec))
    deadline = time.monotonic() + BEGIN_SECONDS
    while time.monotonic() < deadline:
        now = site.state()
        if now.phase is Phase.CANARY and now.weight >= 50 and _looks(site) > 20:
            return
        if site.driver.poll() is not None:
            time.sleep(10)  # a dead driver's lease may not be over yet
            site.driver = site.start("release", str(spec))
        time.sleep(0.5)
    raise SystemExit(f"no release reached its canary step: see {site.scratch / 'driver.log'}")


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


def run(site: Site, name: str, when: str, rows: Path) -> str:
    """One row of the table."""
    started = time.time()
    begin(site)
    before = site.state()
    if when == "rollback":
        # Its own process, so that the fault meets it at work: after the first commit, before the slot is empty.
        site.driver = site.start("rollback", MODEL, "--reason", "fault matrix")
        deadline = time.monotonic() + BUDGET_SECONDS
        while site.state().generation == before.generation and time.monotonic() < deadline:
            time.sleep(0.1)
    began = time.time()
    FAULTS[name](site)
    ended = settle(site)
    seconds = time.time() - began
    time.sleep(5)  # answers on their way are rows once they have come
    history = Workspace.current().gitops.history(MODEL, ENVIRONMENT)
    generations = [
        int(entry.trailers["Lockgate-Generation"]) for entry in reversed(history) if entry.release
    ]
    whole = generations == list(range(generations[0], generations[0] + len(generations)))
    sent = [json.loads(line) for line in rows.read_text().splitlines()]
    since = [row for row in sent if row["start"] >= started]
    late = [row for row in since if row["start"] >= began + 1]
    failed, failed_late = ([row for row in part if not row["ok"]] for part in (since, late))
    outcome = f"{ended.last.outcome}" if ended.last and ended.phase is Phase.STABLE else ended.phase
    verdict = ended.verdicts[-1].verdict if ended.verdicts else "none"
    kept = f"{ended.generation - before.generation} commits" if whole else "LOST OR DOUBLED"
    with (site.scratch / "failed.jsonl").open("a") as kept_rows:
        for row in failed:
            since_fault = round(row["start"] - began, 3)
            kept_rows.write(json.dumps({"fault": name, "during": when, "at": since_fault, **row}))
            kept_rows.write("\n")
    return (
        f"| {name} | {when} | {verdict} | {outcome} | {kept} | {seconds:.0f} "
        f"| {len(failed_late)} of {len(late)} | {len(failed)} of {len(since)} |"
    )


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
    site.control.unlink(missing_ok=True)
    # Without the reconciler that `up` starts: were it first to drive the release, nothing would stand between it and the metrics.
    stop_reconciler(Settings())
    site.run("up", "--no-server")
    ensure_server(Settings())
    deadline = time.monotonic() + BEGIN_SECONDS
    while not site.stable_ready() and time.monotonic() < deadline:
        time.sleep(1)
    rows = scratch / f"rows-{os.getpid()}.jsonl"
    url = Workspace.current().cluster().gateway_url(MODEL)
    traffic = subprocess.Popen(
        [sys.executable, "-m", "serving.local.traffic", "--url", url, "--model", MODEL,
         "--rate", f"{RATE:g}", "--seconds", "9000", "--out", str(rows), "--beside", str(os.getpid())],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    print(
        "| fault | during | last verdict | outcome | Git | seconds | failed, begun 1 s after | failed, all |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    try:
        for when in arguments.when or ("canary", "rollback"):
            for name in arguments.fault or FAULTS:
                if when == "canary" or name in IN_ROLLBACK:
                    print(run(site, name, when, rows), flush=True)
    finally:
        traffic.terminate()
        traffic.wait(180)


if __name__ == "__main__":
    main()
