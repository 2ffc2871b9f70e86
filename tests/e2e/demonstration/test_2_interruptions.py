"""Kill what drives a release, at the worst moment, and touch nothing: it still ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from lockgate.cli.prefect_server import stop_server
from lockgate.cli.reconciler import ensure_reconciler, stop_reconciler
from lockgate.domain.judge import judge_lines
from lockgate.domain.release_state import Outcome, Phase
from tasks.judging import judge_config
from tests.e2e.e2e_site import MODEL, Site, deploy, wait_until

Demo = tuple[Site, subprocess.CompletedProcess[str]]

EVERY_ROAD: dict[str, Any] = {
    "steps": [
        {"weight": 0, "traffic": "header", "min_seconds": 8},
        {
            "weight": 0,
            "traffic": "mirror",
            "mirror_percent": 50,
            "judge_latency": False,
            "min_seconds": 15,
            "max_seconds": 240,
        },
        {"weight": 50, "min_seconds": 45, "max_seconds": 420},
    ],
    "bake_seconds": 40,
    "control_percent": 20,
    "slos": {"error_ratio": 0.2, "e2e": {"seconds": 100}},
}
"""By header, by copies, by weight, and a bake that is judged by a control and by objectives."""


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def committed_release(site: Site, spec: Path, log: Path) -> subprocess.Popen[bytes]:
    """A release whose candidate has passed its gates and stands in its slot, without traffic."""
    before = site.state().generation
    flow = site.start("release", str(spec), log=log)

    def committed() -> bool:
        assert flow.poll() is None, log.read_text()
        return site.state().generation > before

    wait_until(committed, 600, "the candidate was committed")
    return flow


def wait_until_judged(site: Site, flow: subprocess.Popen[bytes], log: Path) -> None:
    """Until the release is in the middle of its last canary step, some scrapes into it."""

    def judged() -> bool:
        assert flow.poll() is None, log.read_text()
        state = site.state()
        trace = site.settings.layout.trace(MODEL, "local", state.began)
        return (
            state.phase is Phase.CANARY
            and state.weight == 50
            and trace.exists()
            and len(trace.read_bytes().splitlines()) > 20
        )

    wait_until(judged, 600, "the release reached its second canary step")


def test_a_killed_flow_is_taken_up_from_git_and_the_trace(demo: Demo, tmp_path: Path) -> None:
    site, _ = demo
    log = tmp_path / "release.log"
    before = site.history()
    spec = site.spec(2, "killed", serving={"max_num_seqs": 24}, canary=EVERY_ROAD)
    flow = committed_release(site, spec, log)
    with site.running_traffic(tmp_path / "rows.jsonl"):
        wait_until_judged(site, flow, log)
        state = site.state()
        kill(flow)
        os.environ["PREFECT_API_URL"] = site.prefect_url()
        ensure_reconciler(site.settings)
        wait_until(lambda: site.state().phase is Phase.STABLE, 600, "reconcile ended the release")
        stop_reconciler(site.settings)
    new = site.history()[len(before) :]
    generations = [int(entry.trailers["Lockgate-Generation"]) for entry in new]
    assert generations == list(range(generations[0], generations[0] + len(new)))
    assert [e.transition for e in new] == [
        *("deploy", "raise", "raise", "raise", "promote", "end_control", "finish")
    ]
    # The trace, replayed in one go by a judge that was never killed, says the same.
    trace = site.settings.layout.trace(MODEL, "local", state.began)
    report = judge_lines(trace.read_text().splitlines(), judge_config(state))
    assert report.verdict == "pass"
    promoted = next(entry for entry in new if entry.transition == "promote")
    assert promoted.verdict is not None and promoted.verdict.split()[0] == "pass"
    assert "nothing was judged" not in new[-1].body


def test_unobserved_for_longer_than_the_budget_the_traffic_goes_back_to_stable(
    demo: Demo, tmp_path: Path
) -> None:
    site, _ = demo
    log = tmp_path / "release.log"
    budget = 20
    step = {"weight": 50, "min_seconds": 45, "max_seconds": 420}
    canary = {"steps": [step], "outage_budget_seconds": budget}
    spec = site.spec(2, "unobserved", serving={"max_num_seqs": 23}, canary=canary)
    made = yaml.safe_load(spec.read_text())
    deploy(site, made["serving"], made["canary"])
    flow = site.start("reconcile", MODEL, log=log)
    with site.running_traffic(tmp_path / "rows.jsonl"):
        wait_until_judged(site, flow, log)
        candidate = site.state().occupant(site.state().free_slot)
        kill(flow)
        stop_server(site.settings)
        time.sleep(budget + 5)
        # Agent and Envoy went on alone.
        assert site.state().weight == 50
        os.environ.pop("PREFECT_API_URL", None)
        for _ in range(12):
            site.run("reconcile", MODEL, timeout=300)
            if site.state().phase is Phase.STABLE:
                break
            time.sleep(10)
    state = site.state()
    assert candidate is not None and state.last is not None
    assert state.phase is Phase.STABLE
    assert state.last.outcome is Outcome.ABORTED
    assert state.last.candidate == candidate.candidate.digest
    assert state.is_denied(candidate.candidate.digest) is None
