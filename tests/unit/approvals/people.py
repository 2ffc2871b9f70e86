"""Release managers with real SSH keys, and what waits for them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lockgate.adapters import ssh_signatures
from lockgate.domain.approval import (
    NAMESPACE,
    ApprovalRequest,
    Approver,
    Decision,
    SignedDecision,
    Verify,
    approval_request,
    read_approvers,
)
from lockgate.domain.policy import ApprovalRule
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import start
from tests.unit.rollout.world import BEGIN, SPEC_WITH_APPROVAL, Rollout, occupant

MANIFESTS = {
    "models/m/prod/manifests/deployment-m-b.yaml": "kind: Deployment\nspec: {replicas: 4}\n",
    "models/m/prod/manifests/httproute-m.yaml": (
        "kind: HTTPRoute\n"
        "metadata: {annotations: {lockgate.dev/generation: '4', other: x}}\n"
        "spec:\n  rules:\n  - backendRefs: [{name: m-a, weight: 95}, {name: m-b, weight: 5}]\n"
    ),
}
RULE = ApprovalRule(needed=1, roles=("release-manager",), valid_hours=72)


@dataclass(frozen=True)
class Person:
    """Somebody with a key."""

    name: str
    key: Path

    @property
    def public(self) -> str:
        """Type and key."""
        return " ".join(self.key.with_name(f"{self.key.name}.pub").read_text().split()[:2])

    def line(self, *, names: str | None = None, options: str | None = None, roles: str = "") -> str:
        given = (
            f'namespaces="{NAMESPACE}" ' if options is None else f"{options} " if options else ""
        )
        return f"{names or self.name} {given}{self.public} {roles}\n"

    def signs(
        self,
        request: ApprovalRequest,
        word: str = "approve",
        *,
        namespace: str = NAMESPACE,
        **changes: Any,
    ) -> SignedDecision:
        decision = Decision.model_validate(
            {
                "word": word, "request": request, "by": self.name,
                "at": "2026-11-23T12:10:00.000Z", **changes,
            }
        )  # fmt: skip
        signature = ssh_signatures.sign(decision.signed_bytes(), self.key, namespace=namespace)
        return SignedDecision.of(decision, signature)


def make_person(directory: Path, name: str, *, key: str = "") -> Person:
    path = directory / (key or name)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)],
        check=True, timeout=20,
    )  # fmt: skip
    return Person(name, path)


def waiting(*, requested_by: str | None = "dev", now: datetime = BEGIN) -> Rollout:
    """`new` has passed its first step, and waits for an approval of the second."""
    rollout = Rollout()
    rollout.now = now
    rollout.start("old")
    rollout.sees()
    who = occupant("new").model_copy(update={"requested_by": requested_by})
    rollout._apply(start(rollout.state, who, SPEC_WITH_APPROVAL, rollout.now))
    rollout.after(60).sees()
    rollout.after(60).hears("pass")
    assert rollout.state.phase is Phase.AWAITING_APPROVAL
    return rollout


def request_of(state: ReleaseState, rule: ApprovalRule = RULE) -> ApprovalRequest:
    request = approval_request(state, MANIFESTS, rule)
    assert request is not None
    return request


def verify_at(now: datetime = BEGIN) -> Verify:
    def verify(data: bytes, armored: str, approver: Approver, name: str) -> str | None:
        return ssh_signatures.verify(data, armored, approver, name, at=now)

    return verify


def listed(*lines: str) -> tuple[Approver, ...]:
    return read_approvers("# people\n\n" + "".join(lines))
