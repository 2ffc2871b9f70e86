"""Scanning again what serves: what is in service, and what a scan of today says of it.

A gate decides before anything serves; what scanners and databases learn afterwards is decided here, about what serves
already. Nothing found here moves traffic: that is for a person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence
from lockgate.domain.gates.base import Decision
from lockgate.domain.gates.scan import blocking_findings, scan_gate
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import ReleaseState, Slot

Role = Literal["stable", "candidate", "warm"]


class Served(Frozen):
    """One occupied slot."""

    model: str
    environment: str
    slot: Slot
    role: Role
    """`warm`: the version before the promotion, while it bakes, or one that is being emptied."""
    release: str
    candidate: Candidate
    under_way: bool
    """Whether its release is the one that somebody drives."""


class BlockingFinding(Frozen):
    """A finding that the policy refuses today."""

    kind: str
    rule: str
    severity: str
    path: str
    message: str
    new: bool = True
    """Whether the scan before did not have it, or the policy did not refuse it then."""

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.kind, self.rule, self.path

    def __str__(self) -> str:
        where = self.path or "the whole image"
        return f"{self.kind}: {self.severity}: {where}: {self.message} [{self.rule}]"


class RescanRecord(Frozen):
    """What the newest re-scan of a candidate found; kept in the store, by candidate."""

    candidate: Digest
    at: AwareDatetime
    policy: Digest
    scans: tuple[Digest, ...]
    """Documents in the store."""
    result: Literal["clean", "findings", "incomplete"]
    """`incomplete`: a scanner could not do its work, or was not there; nothing that it would have found is known."""
    reasons: tuple[str, ...]
    findings: tuple[BlockingFinding, ...] = ()

    @property
    def new(self) -> tuple[BlockingFinding, ...]:
        return tuple(finding for finding in self.findings if finding.new)


class RescanOutcome(Frozen):
    """One slot, what was found in it, and what followed."""

    served: Served
    record: RescanRecord
    document: Digest
    """The record, as a document in the store."""
    held: bool = False
    """Whether its release was held for it."""

    def as_text(self) -> str:
        served = self.served
        name = f"{served.model}/{served.environment} {served.role} {served.candidate.digest.short}"
        count = f"{len(self.record.findings)} findings, {len(self.record.new)} new"
        said = {
            "clean": "clean",
            "findings": count,
            "incomplete": "NOT SCANNED as the policy wants",
        }
        return f"{name}: {said[self.record.result]}" + (", held" if self.held else "")


def in_service(states: Iterable[ReleaseState]) -> tuple[Served, ...]:
    """Everything that takes traffic, may, or is kept warm to."""
    return tuple(
        Served(
            model=state.model, environment=state.environment, slot=slot, role=_role(state, slot),
            release=occupant.release, candidate=occupant.candidate,
            under_way=occupant.release == state.release_under_way,
        )
        for state in states
        for slot in (Slot.A, Slot.B)
        if (occupant := state.occupant(slot)) is not None
    )  # fmt: skip


def judge_rescan(
    candidate: Digest,
    scans: Sequence[ScanEvidence],
    policy: Policy,
    *,
    at: datetime,
    subjects: Collection[Digest],
    documents: Sequence[Digest],
    before: RescanRecord | None,
) -> RescanRecord:
    """What today's scans say under today's policy. `before`: the re-scan before this one; None where the gate's own scan was
    the last, which let nothing through."""
    known = {finding.identity for finding in before.findings} if before is not None else set()
    findings = []
    for scan in scans:
        for finding in blocking_findings(scan, policy, at):
            found = _blocking(scan.subject_kind, finding)
            findings.append(found.model_copy(update={"new": found.identity not in known}))
    decided = scan_gate(scans, policy, now=at, subjects=subjects)
    result: Literal["clean", "findings", "incomplete"] = "clean"
    if findings:
        result = "findings"
    elif decided.decision is not Decision.PASS:
        result = "incomplete"
    return RescanRecord(
        candidate=candidate, at=at, policy=policy.content_digest(), scans=tuple(documents),
        result=result, reasons=decided.reasons, findings=tuple(findings),
    )  # fmt: skip


def _role(state: ReleaseState, slot: Slot) -> Role:
    if slot is state.stable:
        return "stable"
    return "candidate" if slot is state.canary_slot else "warm"


def _blocking(kind: str, finding: Finding) -> BlockingFinding:
    return BlockingFinding(
        kind=kind, rule=finding.rule, severity=finding.severity, path=finding.path,
        message=finding.message,
    )  # fmt: skip
