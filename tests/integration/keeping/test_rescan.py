"""Scanning again what serves: real Git and a real image store; in the scanners' place what a test says that they find."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.rescan import rescan
from lockgate.adapters import sources
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.oci.runtime import push_runtime
from lockgate.domain import gitops
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus, Severity
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState
from lockgate.domain.rescan import RescanOutcome, RescanRecord
from lockgate.domain.rollout import Transition, start
from lockgate.errors import ScannerError, UsageError
from lockgate.settings import Settings
from tasks import by_hand, driving, events, releasing, rescanning
from tasks.explaining import explain
from tasks.workspace import Workspace
from tests.integration.git.repositories import make_remote, render, somebody_pushes, taking
from tests.unit.rollout.world import SPEC, Rollout, candidate

MALWARE = Finding(
    scanner="structure", rule="code-file", severity=Severity.HIGH, path="x.py", message="code"
)
COMPLETED = ScannerStatus.COMPLETED


@dataclass
class World:
    """`old` is stable, `new` in its canary; scanners find nothing until a test says so."""

    root: Path
    findings: dict[Digest, tuple[Finding, ...]] = field(default_factory=dict)
    """By the model image that they are in."""
    broken: set[Digest] = field(default_factory=set)
    weights_status: ScannerStatus = COMPLETED
    scanned: list[Digest] = field(default_factory=list)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rollout: Rollout = field(default_factory=Rollout)

    def __post_init__(self) -> None:
        make_remote(self.root)
        self.workspace = Workspace(Settings())
        self.starts("old")
        self.sees()
        self.starts("new")
        self.sees()
        assert self.state().phase is Phase.CANARY

    def candidate(self, name: str) -> Candidate:
        directory = self.root / "models" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"name": name}))
        image = push_model(
            self.workspace.store, "lockgate.local/models/m", directory,
            sources.read_snapshot(directory), labels={},
        )  # fmt: skip
        runtime = push_runtime(
            self.workspace.store, "lockgate.local/runtimes/vllm",
            environment_digest=Digest.of_bytes(b"e"), lock_file=self.root / "lock", engine="vllm",
        )  # fmt: skip
        return candidate(name).model_copy(update={"model": image, "runtime": runtime})

    def starts(self, name: str) -> None:
        (self.root / "lock").write_text("vllm==1\n")
        who = Occupant(
            candidate=self.candidate(name), release=f"m-{name}", evidence=Digest.of_bytes(b"e")
        )
        self.lands(start(self.rollout.state, who, SPEC, self.rollout.now))

    def sees(self) -> None:
        self.lands(self.rollout.after(60).sees())

    def lands(self, answer: object) -> None:
        assert isinstance(answer, Transition), answer
        if self.rollout.state is not answer.state:
            self.rollout._apply(answer)
        self.workspace.gitops.commit_transition("m", "prod", taking(self.rollout), render)

    def state(self) -> ReleaseState:
        self.workspace.gitops.sync()
        return self.workspace.gitops.read_state("m", "prod")

    def policy(self, **policy: object) -> None:
        data = {"apiVersion": "lockgate.dev/v1", "kind": "Policy", **policy}
        somebody_pushes(self.root, "policy.yaml", gitops.dump_yaml(data))

    def finds(self, name: str, *findings: Finding) -> None:
        self.findings[self.candidate(name).model.digest] = findings

    def rescans(self, **of: Any) -> dict[str, RescanOutcome]:
        self.scanned.clear()
        self.told.clear()
        return {outcome.served.role: outcome for outcome in rescan.fn(**of)}


def evidence(subject: Digest, kind: str, status: ScannerStatus, *findings: Finding) -> ScanEvidence:
    names = ("structure", "picklescan", "modelaudit") if kind == "weights" else ("trivy",)
    runs = tuple(ScannerRun(name=name, version="1", status=status) for name in names)
    return ScanEvidence(
        subject=subject, subject_kind=kind, runs=runs, findings=findings, seconds=1,
        scanned_at=datetime.now(UTC),
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(driving, "rendering", lambda workspace: render)
    found = World(tmp_path)

    def scan_weights(directory: Path, snapshot: Any, policy: Any, **_: Any) -> ScanEvidence:
        assert (directory / "config.json").is_file()
        return evidence(snapshot.digest, "weights", found.weights_status)

    def scan_image(workspace: Workspace, image: ImageRef, *_: Any) -> ScanEvidence:
        found.scanned.append(image.digest)
        if image.digest in found.broken:
            raise ScannerError("trivy broke", log="/logs/trivy.log")
        return evidence(image.digest, "image", COMPLETED, *found.findings.get(image.digest, ()))

    def tell(event: str, model: str, environment: str, **payload: Any) -> None:
        found.told.append((event, payload))

    monkeypatch.setattr(rescanning.scanners, "scan_weights", scan_weights)
    monkeypatch.setattr(rescanning, "scan_stored_image", scan_image)
    monkeypatch.setattr(rescanning, "tell", tell)
    # Tasks and step flows are called as functions: no server runs here.
    for name in ("read_served", "scan_served", "keep_rescan", "act_on_rescan"):
        monkeypatch.setattr(rescanning, name, getattr(rescanning, name).fn)
    monkeypatch.setattr("flows.rescan.releasing.read_policy", releasing.read_policy.fn)
    monkeypatch.setattr(
        "flows.rescan.run_step",
        lambda step, request, kind: rescanning.scan_served(request.candidate, request.policy),
    )
    yield found


def test_what_serves_is_scanned_again_and_found_clean_without_a_word_or_a_commit(
    world: World,
) -> None:
    before = world.state()
    found = world.rescans()
    assert {role: o.record.result for role, o in found.items()} == {
        "stable": "clean", "candidate": "clean",
    }  # fmt: skip
    assert world.told == [] and world.state() == before
    # The embedded cluster's own runtime is a description: two model images were scanned, nothing else.
    assert len(world.scanned) == 2
    # Nothing is found from an earlier run: that is what a re-scan is for.
    world.rescans()
    assert len(world.scanned) == 2


def test_a_new_finding_in_a_canary_holds_its_raises_and_moves_no_traffic(world: World) -> None:
    before = world.state()
    world.finds("new", MALWARE)
    found = world.rescans()["candidate"]
    assert found.held and found.record.new
    after = world.state()
    assert (after.phase, after.weights()) == (Phase.HELD, before.weights())
    assert "re-scan found 1 new" in str(after.held_reason)
    assert after.denylist == ()
    assert [event for event, _ in world.told] == [events.FOUND]
    assert world.workspace.records.get_document(found.document) == found.record.to_data()


def test_a_finding_in_what_is_stable_is_told_and_holds_nothing_else(world: World) -> None:
    before = world.state()
    world.finds("old", MALWARE)
    found = world.rescans()["stable"]
    assert found.record.result == "findings" and not found.held
    assert world.state() == before
    ((event, payload),) = world.told
    assert event == events.FOUND and payload["role"] == "stable" and payload["new"] == 1


def test_a_finding_is_new_once_so_that_a_person_may_go_on_in_spite_of_it(world: World) -> None:
    world.finds("new", MALWARE)
    world.rescans()
    by_hand.commit_resume.fn("m", "prod", "looked at it", "mara")
    again = world.rescans()["candidate"]
    assert again.record.result == "findings" and not again.record.new and not again.held
    assert world.state().phase is Phase.CANARY
    # And another one is new again.
    world.finds("new", MALWARE, MALWARE.model_copy(update={"path": "y.py"}))
    assert [f.path for f in world.rescans()["candidate"].record.new] == ["y.py"]
    assert world.state().phase is Phase.HELD


def test_the_policy_may_want_to_be_told_only(world: World) -> None:
    world.policy(rescan_findings="report")
    world.finds("new", MALWARE)
    assert not world.rescans()["candidate"].held
    assert world.state().phase is Phase.CANARY


def test_a_waiver_of_today_counts_and_a_stricter_policy_finds_what_was_let_through(
    world: World,
) -> None:
    low = MALWARE.model_copy(update={"severity": Severity.MEDIUM})
    world.finds("old", low)
    assert world.rescans()["stable"].record.result == "clean"
    world.policy(images={"block_at": "medium"})
    assert world.rescans()["stable"].record.new
    subject = world.candidate("old").model.digest
    waiver = {
        "rule": "code-file", "digest": subject, "reason": "read by mara, harmless", "until": "2099-01-01",
    }  # fmt: skip
    world.policy(images={"block_at": "medium"}, waivers=[waiver])
    assert world.rescans()["stable"].record.result == "clean"


def test_a_scanner_that_is_not_there_is_not_clean_and_holds_nothing(world: World) -> None:
    world.weights_status = ScannerStatus.NOT_INSTALLED
    found = world.rescans()
    assert {o.record.result for o in found.values()} == {"incomplete"}
    assert {event for event, _ in world.told} == {events.UNSCANNED}
    assert world.state().phase is Phase.CANARY


def test_a_scan_that_breaks_is_an_error_after_the_others_were_scanned(world: World) -> None:
    world.broken = {world.candidate("old").model.digest}
    world.finds("new", MALWARE)
    with pytest.raises(Exception, match="trivy broke") as raised:
        world.rescans()
    assert getattr(raised.value, "log", None) == "/logs/trivy.log"
    assert world.state().phase is Phase.HELD


def test_a_model_that_serves_nowhere_is_a_usage_error(world: World) -> None:
    with pytest.raises(UsageError):
        world.rescans(model="other")
    assert world.rescans(environment="staging") == {}


def test_a_record_of_an_older_scan_is_read_back(world: World) -> None:
    found = world.rescans()["stable"]
    kept = rescanning.last_rescan(world.workspace, found.served.candidate.digest)
    assert isinstance(kept, RescanRecord) and kept == found.record


def test_what_a_re_scan_found_is_a_part_of_why_a_release_stands_as_it_does(world: World) -> None:
    world.finds("old", MALWARE)
    document = world.rescans()["stable"].document
    said = explain(world.workspace, "m@stable")
    assert said.result == "promoted"
    assert ("re-scan findings", document) in {(e.kind, e.digest) for e in said.evidence}
    assert any("refuses it today (image: high: x.py" in step for step in said.next_steps)


def test_transitions_become_events_that_automations_can_wait_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr(
        events,
        "emit_event",
        lambda event, resource, payload: sent.append((event, resource, payload)),
    )
    rollback = world.rollout.after(60).hears("fail")
    assert isinstance(rollback, Transition)
    # Without an API nothing is sent: Prefect would start a server of its own for it.
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        events.tell_transition(rollback, "0" * 40)
    assert sent == []
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        events.tell_transition(rollback, "0" * 40)
    ((event, resource, payload),) = sent
    assert event == "lockgate.canary.failed"
    assert resource["prefect.resource.id"] == "lockgate.model.m.prod"
    assert payload["release"] == "m-new" and payload["commit"] == "0" * 40
