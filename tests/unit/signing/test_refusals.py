"""Each way to bring in what nobody released, tried at every door: the commit, the raise of weight, the start of a pod.

The doors are the product's own: the commit task on a bare Git remote, a watcher's look with what follows from it, the embedded
cluster's admission. Only the cluster's answer and the manifests' rendering are made up.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.adapters.git import Layout, lay_down, template_directory
from lockgate.adapters.scanners import scan_weights
from lockgate.adapters.signing import attachments, attest, sign_image
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE, statement
from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import ClusterStatus, GatewayStatus, ModelStatus, PodStatus, SlotStatus
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES, Decision, GateReport, GateResult
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import Policy, WeightScanPolicy
from lockgate.domain.release_state import Occupant, ReleaseState, Slot
from lockgate.domain.rollout import Transition, TransitionKind, Wait, advance, start
from lockgate.domain.spec import CanarySpec
from lockgate.errors import LockgateError, Refused, RegistryError, VerificationError
from lockgate.settings import Settings
from serving.local.images import StoreAdmission
from tasks import driving, watching
from tasks.releasing import commit_candidate
from tasks.supply import sign_candidate
from tasks.watching import Watcher
from tasks.workspace import Workspace

from .test_verification import change_one_byte, sign_by_hand

World = Any
MODEL, ENVIRONMENT = "m", "prod"
SPEC = SimpleNamespace(model=MODEL, environment=ENVIRONMENT, canary=CanarySpec())
NOW = datetime(2026, 1, 3, tzinfo=UTC)
ENDINGS = (TransitionKind.ABORT, TransitionKind.ROLLBACK)


@dataclass
class Doors:
    """One candidate before the three doors of one site."""

    world: World
    policy: Policy
    candidate: Candidate
    standing: dict[str, str] = field(default_factory=dict)
    """Candidates in the cluster's slots, where it is not the one in both."""

    @property
    def workspace(self) -> Workspace:
        return Workspace.current()

    def commits(self) -> list[str]:
        remote = self.workspace.settings.git_remote
        done = subprocess.run(
            ["git", "-C", remote, "log", "--format=%B"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return done.stdout.split()

    def commit(self, candidate: Candidate | None = None) -> ReleaseState:
        evidence = Digest.of_bytes(b"evidence")
        return commit_candidate.fn(SPEC, candidate or self.candidate, self.policy, evidence)

    def look_and_decide(self, candidate: Candidate | None = None) -> Transition:
        """What a driver does that finds the candidate in its slot, ready and answering, before it gets traffic."""
        candidate = candidate or self.candidate
        occupant = Occupant(candidate=candidate, release="r", evidence=Digest.of_bytes(b"evidence"))
        started = start(
            ReleaseState(model=MODEL, environment=ENVIRONMENT), occupant, CanarySpec(), NOW
        )
        assert isinstance(started, Transition)
        self.workspace.gitops.sync()
        answer = advance(started.state, Watcher(self.workspace, started.state).look(), NOW)
        assert isinstance(answer, Transition), answer
        return answer

    def start_pod(self, candidate: Candidate | None = None) -> Path:
        candidate = candidate or self.candidate
        config = SimpleNamespace(
            store=f"oci:{self.world.store.root}", plain_http=False, signing=self.policy.signing,
            gates=self.policy.gates, runtime_environment=Digest.of_bytes(b"environment"),
            snapshots=self.world.directory / "pulled",
        )  # fmt: skip
        template = SimpleNamespace(
            runtime=candidate.runtime, model=candidate.model, candidate=candidate.digest,
            engine="vllm",
        )  # fmt: skip
        return StoreAdmission(config).admit(template)  # type: ignore[arg-type]  # what it reads

    def let_through(self) -> None:
        assert (self.start_pod() / "config.json").read_bytes() == b"{}"
        assert self.look_and_decide().kind not in ENDINGS
        assert self.commit().occupant(self.commit().free_slot) is not None
        assert str(self.candidate.model.digest) in self.commits()

    def refuse(self, rule: str, candidate: Candidate | None = None) -> None:
        """At all three, by that rule and without a trace."""
        self.refuse_the_commit(rule, candidate)
        self.refuse_the_raise(rule, candidate)
        self.refuse_the_pod(rule, candidate)

    def refuse_the_commit(self, rule: str, candidate: Candidate | None = None) -> None:
        before = self.commits()
        with pytest.raises(VerificationError, match=f"{rule}: "):
            self.commit(candidate)
        assert self.commits() == before

    def refuse_the_raise(self, rule: str, candidate: Candidate | None = None) -> None:
        ended = self.look_and_decide(candidate)
        assert ended.kind in ENDINGS
        assert ended.reason is not None
        assert ended.reason.startswith("verification: ")
        assert f"{rule}: " in ended.reason
        assert set(ended.state.weights().values()) <= {0}

    def refuse_the_pod(self, rule: str, candidate: Candidate | None = None) -> None:
        with pytest.raises(LockgateError, match=rule) as caught:
            self.start_pod(candidate)
        assert not isinstance(caught.value, RegistryError), "that would be waited for"
        assert not list((self.world.directory / "pulled").glob("*"))


def status(standing: dict[str, str], generation: int) -> ClusterStatus:
    """A cluster in which every slot is up, whatever stands in it."""

    def slot(name: str, candidate: str) -> SlotStatus:
        pod = PodStatus(
            name="p", pid=1, url="http://127.0.0.1:1", ready=True, since=0.0, state="running",
            candidate=candidate, template="t", restarts=0, log="",
        )  # fmt: skip
        return SlotStatus(
            slot=name, deployment=name, candidate=candidate, desired=1, ready=1, updated=1,
            restarts=0, pods=(pod,),
        )  # fmt: skip

    slots = {name: slot(name, candidate) for name, candidate in standing.items()}
    model = ModelStatus(
        model=MODEL, commit="c", generation=generation, gateway_url="", route=None, slots=slots
    )
    return ClusterStatus(
        cluster="c", pid=1, started=0.0, environment=ENVIRONMENT, remote="", branch="main", head="c",
        synced="c", fetched=0.0, sync_error=None, models={MODEL: model},
        gateway=GatewayStatus(pid=1, restarts=0, admin_url="", access_log=""),
    )  # fmt: skip


@pytest.fixture
def doors(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doors:
    """A candidate that is released as it should be."""
    for name, value in {
        "WORKSPACE": tmp_path / "workspace",
        "STORE": f"oci:{world.store.root}",
        "SIGNING_KEY": tmp_path / "release",
    }.items():
        monkeypatch.setenv(f"LOCKGATE_{name}", str(value))
    settings = Settings()
    policy = Policy(signing=world.policy, max_evidence_age_days=36500)
    lay_down(
        template_directory(), tmp_path / "first",
        layout=Layout((ENVIRONMENT,), "embedded", remote=settings.git_remote),
        public_key_pem=world.signer.public_pem, policy=policy,
    )  # fmt: skip
    doors = Doors(world, policy, world.candidate)
    monkeypatch.setattr(driving, "rendering", lambda _: lambda state, root: {})
    monkeypatch.setattr(watching, "smoke_generation", lambda url, name: None)

    class Cluster:
        def status(self) -> ClusterStatus:
            both = dict.fromkeys(("a", "b"), str(doors.candidate.digest))
            return status(doors.standing or both, 4 if doors.standing else 1)

        def carry_out(self, commit: str, state: ReleaseState, *, timeout_seconds: float) -> bool:
            return True

    monkeypatch.setattr(Workspace, "cluster", lambda *_: Cluster())
    sign_image(world.store, world.candidate.runtime, world.signer)
    return doors


def other_model(doors: Doors) -> Candidate:
    """Other weights, served in the same way."""
    return doors.candidate.model_copy(update={"model": doors.world.push(b'{"evil": true}')})


def aged(doors: Doors, days: int) -> Policy:
    """The site's policy, with another age, in its repository."""
    return doors.policy.model_copy(update={"max_evidence_age_days": days})


def test_what_was_released_goes_through_all_three_doors(doors: Doors) -> None:
    doors.world.release()
    doors.let_through()


def test_an_image_that_nobody_signed_goes_through_none(doors: Doors) -> None:
    doors.refuse("signature")


def test_a_tampered_layer_is_refused(doors: Doors) -> None:
    """One byte is found by who reads the layer, and no pod serves it; a layer that lost a part or is gone is found by all."""
    doors.world.release()
    body, _ = doors.world.store.get_manifest(
        doors.candidate.model.repository, doors.candidate.model.digest
    )
    layer = doors.world.store.blob_path(Digest(json.loads(body)["layers"][-1]["digest"]))
    change_one_byte(layer)
    doors.refuse_the_pod("sha256:")
    layer.write_bytes(layer.read_bytes()[:-512])
    doors.refuse("layers")
    layer.unlink()
    doors.refuse("layers")


def test_a_swapped_manifest_is_refused(doors: Doors) -> None:
    doors.world.release()
    store, other = doors.world.store, other_model(doors)
    body = store.blob_path(other.model.digest).read_bytes()
    store.blob_path(doors.candidate.model.digest).write_bytes(body)
    doors.refuse("image")


def test_a_signature_of_another_digest_is_refused(doors: Doors) -> None:
    """Every signature and attestation of a released image, attached to another one."""
    world, victim = doors.world, other_model(doors)
    world.release()
    for descriptor in attachments.bundle_descriptors(world.store, world.image):
        bundle = attachments.read_bundle(world.store, world.image, descriptor)
        kind = descriptor.annotations["dev.sigstore.bundle.predicateType"]
        attachments.attach_bundle(world.store, victim.model, bundle, kind, "2026-01-02T00:00:00Z")
    for legacy in attachments.legacy_signatures(world.store, world.image):
        attachments.attach_legacy(world.store, victim.model, legacy.payload, legacy.annotations)
    doors.candidate = victim
    doors.refuse("signature")


def test_another_key_is_refused(doors: Doors) -> None:
    doors.world.signer = doors.world.other_signer
    doors.world.release()
    doors.refuse("signature")


def test_a_runtime_of_another_key_is_refused(doors: Doors) -> None:
    world = doors.world
    runtime = world.push(b'{"runtime": true}').model_copy(
        update={"repository": "lockgate.local/demo"}
    )
    doors.candidate = doors.candidate.model_copy(update={"runtime": runtime})
    sign_image(world.store, runtime, world.other_signer)
    sign_image(world.store, world.image, world.signer)
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance())
    attest(world.store, world.image, world.signer, GATE_TYPE, world.gate(doors.candidate))
    doors.refuse("signature")


def test_a_failed_gate_signed_by_the_right_key_is_refused(doors: Doors) -> None:
    """Past every rule of the signer, and with a passed one beside it."""
    world = doors.world
    world.release()
    failed = world.gate(report=world.report(evaluation=Decision.FAIL))
    body = statement(world.image, GATE_TYPE, failed.to_data())
    sign_by_hand(world, world.image, body, world.signer)
    doors.refuse("gate")


def test_an_expired_scan_is_refused_before_a_commit_and_before_a_raise(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gates decided lately, upon a scan that was old. What serves already is started again all the same."""
    world, now = doors.world, datetime.now(UTC)
    sign_image(world.store, world.image, world.signer)
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance())
    scanned = (now - timedelta(days=31)).isoformat()
    gate = world.gate(decided_at=now.isoformat(), scanned_at=scanned)
    attest(world.store, world.image, world.signer, GATE_TYPE, gate)
    doors.policy = aged(doors, 30)
    monkeypatch.setattr(type(doors.workspace.gitops), "read_policy", lambda self, *_: doors.policy)
    doors.refuse_the_commit("age")
    doors.refuse_the_raise("age")
    assert doors.start_pod().is_dir()


def test_an_unlisted_license_is_refused(doors: Doors) -> None:
    """By the gate, so it is never signed, so no door opens."""
    world = doors.world
    directory = world.directory / "licensed"
    directory.mkdir()
    (directory / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Demo\n")
    (directory / "config.json").write_text("{}")
    rules = WeightScanPolicy(scanners=("structure",))
    policy = doors.policy.model_copy(update={"weights": rules})
    scan = scan_weights(
        directory, read_snapshot(directory), rules, log_directory=world.directory / "logs"
    )
    result = scan_gate(
        [scan], policy, now=datetime.now(UTC), subjects=[scan.subject], required_kinds=("weights",)
    )
    assert result.decision is Decision.FAIL
    assert any("cc-by-nc-4.0" in reason for reason in result.reasons)
    passed = [
        GateResult(gate=gate, decision=Decision.PASS, reasons=("measured",))
        for gate in REQUIRED_GATES
        if gate != "scan"
    ]
    gates = GateReport(candidate=doors.candidate.digest, results=(result, *passed))
    with pytest.raises(Refused, match="did not pass its gates"):
        sign_candidate.fn(None, doors.candidate, policy, gates, None)
    with pytest.raises(Refused, match="never signed"):
        attest(world.store, world.image, world.signer, GATE_TYPE, world.gate(report=gates))
    doors.refuse("signature")


def test_a_replayed_referrer_is_refused(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old approval of the same weights: for other arguments, or out of date and attached anew."""
    world = doors.world
    world.release()
    approved = doors.candidate
    serving = approved.serving.model_copy(update={"args": ("--max-num-batched-tokens=64",)})
    doors.candidate = approved.model_copy(update={"serving": serving})
    doors.refuse("gate")

    doors.candidate = approved
    for descriptor in attachments.bundle_descriptors(world.store, world.image):
        bundle = attachments.read_bundle(world.store, world.image, descriptor)
        kind = descriptor.annotations["dev.sigstore.bundle.predicateType"]
        today = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        attachments.attach_bundle(world.store, world.image, bundle, kind, today)
    doors.policy = aged(doors, 30)
    monkeypatch.setattr(type(doors.workspace.gitops), "read_policy", lambda self, *_: doors.policy)
    doors.refuse_the_commit("age")
    doors.refuse_the_raise("age")


def test_a_tag_that_moved_between_verification_and_commit_moves_nothing(doors: Doors) -> None:
    """Every tag of the repository is set to another image; what is committed, raised and started is what was verified."""
    world = doors.world
    world.release()
    assert world.verify().ok
    evil = other_model(doors)
    body, media_type = world.store.get_manifest(evil.model.repository, evil.model.digest)

    def move(tag: str) -> None:
        world.store.put_manifest(world.image.repository, body, media_type, tag)
        assert world.store.resolve(world.image.repository, tag) == evil.model.digest

    referrers = f"sha256-{world.image.digest.hex}"
    tags = set(world.store.tags(world.image.repository))
    assert {referrers, attachments.legacy_tag(world.image.digest)} < tags
    for tag in tags - {referrers}:
        move(tag)
    doors.let_through()
    assert str(evil.model.digest) not in doors.commits()
    # The index of referrers is found by a tag too. Without it there is no verdict, and nothing is let through.
    move(referrers)
    before = doors.commits()
    for door in (doors.commit, doors.start_pod):
        with pytest.raises(RegistryError, match="not an index of referrers"):
            door()
    assert doors.commits() == before
    doors.candidate = evil
    doors.refuse_the_commit("signature")


def test_a_canary_gets_no_weight_while_it_or_the_version_to_go_back_to_is_not_verified(
    doors: Doors,
) -> None:
    """The first raise of a second release: the canary's bad signature ends it, stable's lost one holds it."""
    world = doors.world
    world.release()
    stable = doors.candidate
    serving = stable.serving.model_copy(update={"args": ("--max-num-batched-tokens=64",)})
    doors.candidate = canary = stable.model_copy(
        update={"serving": serving, "model": world.push(b'{"second": true}')}
    )

    def occupant(candidate: Candidate, release: str) -> Occupant:
        return Occupant(candidate=candidate, release=release, evidence=Digest.of_bytes(b"e"))

    state = ReleaseState(
        model=MODEL, environment=ENVIRONMENT, stable="a", a=occupant(stable, "first"),
        phase="stable", generation=3,
    )  # fmt: skip
    started = start(state, occupant(canary, "second"), CanarySpec(), NOW)
    assert isinstance(started, Transition)
    doors.standing = {"a": stable.digest, "b": canary.digest}
    doors.workspace.gitops.sync()

    def decide() -> Transition | Wait:
        look = Watcher(doors.workspace, started.state).look()
        return advance(started.state, look, NOW)

    ended = decide()
    assert isinstance(ended, Transition)
    assert ended.kind in ENDINGS
    assert "signature: " in (ended.reason or "")
    assert ended.state.weights().get(Slot.B, 0) == 0

    sign_image(world.store, canary.model, world.signer)
    attest(world.store, canary.model, world.signer, PROVENANCE_TYPE, world.provenance())
    attest(world.store, canary.model, world.signer, GATE_TYPE, world.gate(canary))
    raised = decide()
    assert isinstance(raised, Transition), raised
    assert raised.kind is TransitionKind.RAISE
    assert raised.state.weights()[Slot.B] > 0

    for descriptor in attachments.bundle_descriptors(world.store, stable.model):
        body, _ = world.store.get_manifest(stable.model.repository, descriptor.digest)
        change_one_byte(world.store.blob_path(Digest(json.loads(body)["layers"][0]["digest"])))
    held = decide()
    assert isinstance(held, Wait)
    assert "to which a rollback would return, is not verified" in held.reason
