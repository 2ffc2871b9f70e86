"""What a release may do beside the demonstration's road, with real vLLM: a fresh baseline, a promotion by hand, a bake watched
by its own flow against absolute objectives, and a version that takes stable's place without a canary.

In a workspace of its own. Its candidates are signed without having been measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lockgate.adapters.git import EMBEDDED
from lockgate.domain.release_state import Outcome, Phase, Slot
from tasks.workspace import Workspace, initialise
from tests.e2e.e2e_site import MODEL, Site, deploy, read_rows, wait_until

BROKEN_OBJECTIVE = {"bake_seconds": 600, "slos": {"e2e": {"seconds": 0.016}}}
"""No answer is ever as quick."""
PROBES = {
    "questions": [{"prompt": "What is the capital of France?", "expect": "Paris"}],
    "every_seconds": 3,
}
LENIENT = {"latency": 5.0, "tail": 0.6, "errors": 0.5, "output_length": 5.0, "finish_reasons": 0.9}
"""The canary is to stand until a person speaks, however three servers fare on this machine."""
WATCH = f"from flows.watch import watch; print(watch({MODEL!r}, seconds=60))"


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    serving_python: Path,
    quantization_python: Path,
    demo_gguf: Path,
    kubectl: Path,
) -> Iterator[Site]:
    """A workspace in which a first release is stable."""
    site = Site(tmp_path_factory.mktemp("strategies"))
    initialise(site.settings, layout=EMBEDDED, demo=True)
    try:
        assert site.run("up", "--no-server").returncode == 0
        deploy(site, {}, {})
        assert site.run("reconcile", MODEL).returncode == 0
        assert site.state().phase is Phase.STABLE
        yield site
    finally:
        site.run("down", timeout=120)


def watch(site: Site) -> str:
    """One run of the flow, as a schedule starts it."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        env={**site.environment, "PREFECT_API_URL": site.prefect_url()},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(site: Site) -> str:
    """The slot that gave one short answer; nothing where none did."""
    url = Workspace(site.settings).cluster().gateway_url(MODEL)
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
    return answer.headers["x-lockgate-slot"] if answer.status_code == 200 else ""


def test_a_person_promotes_from_beside_a_fresh_baseline_and_the_watch_takes_it_back(
    site: Site, tmp_path: Path
) -> None:
    before = len(site.history())
    log, rows = tmp_path / "driver.log", tmp_path / "rows.jsonl"
    # Nobody but a person ends this step.
    steps = [{"weight": 40, "min_seconds": 900, "max_seconds": 900}]
    new = deploy(
        site,
        {"max_num_seqs": 6},
        {
            "baseline": "fresh",
            "steps": steps,
            "margins": LENIENT,
            "probes": PROBES,
            "control_percent": 0,
            **BROKEN_OBJECTIVE,
        },
    )
    driver = site.start("reconcile", MODEL, log=log)

    def stands_at_its_step() -> bool:
        assert driver.poll() is None, log.read_text()
        return site.state().weight == 40

    with site.running_traffic(rows, rate=2):
        wait_until(stands_at_its_step, 400, "the canary has its weight")
        raised = time.time()
        trace = site.settings.layout.trace(MODEL, "local", site.state().began)

        def answered() -> Counter[str]:
            return Counter(r["slot"] for r in read_rows(rows) if r["start"] > raised)

        wait_until(
            lambda: min(answered()[s] for s in ("a", "b", "baseline")) > 2, 120, "all three answer"
        )
        assert site.run("hold", MODEL, "--reason", "a person looks").returncode == 0
        assert driver.wait(240) == 0, log.read_text()
        assert site.run("promote", MODEL, "--reason", "good enough").returncode == 0
        promoted = site.state()
        assert (promoted.phase, promoted.stable) == (Phase.BAKING, Slot.B)
        # As a schedule does: another run goes on where the last one ended.
        said = [watch(site)]
        while site.state().phase is Phase.BAKING and len(said) < 4:
            said.append(watch(site))
        back = site.state()
        assert (back.phase, back.stable) == (Phase.DRAINING, Slot.A), said
        assert site.run("reconcile", MODEL).returncode == 0
    seen = [json.loads(line) for line in trace.read_text().splitlines()]
    probed = {
        line["instance"]: line["counters"]["lockgate:probe_total"]
        for line in seen
        if line["instance"].startswith("probe-")
    }
    assert probed["probe-b"] == probed["probe-baseline"] > 2
    ended = site.state()
    assert ended.phase is Phase.STABLE
    assert ended.last is not None and ended.last.outcome is Outcome.ROLLED_BACK
    assert ended.is_denied(new.candidate.digest)
    made = [e for e in site.history()[before:] if e.transition != "end_baseline"]
    assert [e.transition for e in made] == [
        *("deploy", "raise", "hold", "promote", "rollback", "finish")
    ]
    by = {e.transition: e for e in made}
    assert by["promote"].verdict is None and by["promote"].trailers["Requested-by"]
    assert (by["rollback"].verdict or "").startswith("fail sha256:")
    assert "no control: absolute SLOs are judged" in by["rollback"].body
    # Stable stood all the while: it was waited for by nobody.
    slot = Workspace(site.settings).cluster().slot_status(MODEL, Slot.A)
    assert slot is not None and slot.restarts == 0


def test_a_version_takes_stables_place_on_offline_evidence_and_gives_it_back(
    site: Site, tmp_path: Path
) -> None:
    before = len(site.history())
    log = tmp_path / "driver.log"
    deploy(site, {"max_num_seqs": 5}, {"strategy": "recreate", **BROKEN_OBJECTIVE})
    driver = site.start("reconcile", MODEL, log=log)

    def phase_is(phase: Phase) -> bool:
        assert driver.poll() in (None, 0), log.read_text()
        return site.state().phase is phase

    wait_until(lambda: phase_is(Phase.BAKING), 400, "the new version has taken the place")
    old = Workspace(site.settings).cluster().slot_status(MODEL, Slot.A)
    assert old is None or not old.pods, "there is room for one version only"
    wait_until(lambda: ask(site) == "b", 30, "the new version answers")

    def judged_by_its_answers() -> bool:
        if phase_is(Phase.BAKING):
            ask(site)
        return phase_is(Phase.STABLE)

    wait_until(judged_by_its_answers, 400, "the old version stands again")
    assert driver.wait(240) == 0, log.read_text()
    ended = site.state()
    assert ended.last is not None and ended.last.outcome is Outcome.ROLLED_BACK
    made = site.history()[before:]
    assert [e.transition for e in made] == ["deploy", "replace", "promote", "rollback", "finish"]
    assert made[2].trailers["Live-Evidence"] == "none"
    assert ask(site) == "a"
