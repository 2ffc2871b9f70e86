"""What is released verifies; whatever was tampered with, forged or left out does not, and the rule is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.images import read_image_manifest
from lockgate.adapters.signing import KeySigner, attachments, attest, sign_image, verify
from lockgate.adapters.signing.dsse import (
    Envelope,
    envelope_of,
    key_bundle,
    parse_bundle,
)
from lockgate.domain.attestation import (
    GATE_TYPE,
    PROVENANCE_TYPE,
    SIGNATURE_TYPE,
    statement,
)
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES, Decision
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import BUILDER, Policy, ProvenancePolicy, SigningPolicy
from lockgate.errors import RegistryError, VerificationError
from lockgate.settings import Settings
from tasks.supply import verifications
from tasks.workspace import Workspace

World = Any
TIME = "2026-01-02T03:04:05Z"


def sign_by_hand(world: World, image: ImageRef, body: bytes, signer: KeySigner) -> None:
    """Attach a statement signed with a key directly, past every rule of the signer."""
    bundle = signer._sign_statement(body)
    attachments.attach_bundle(world.store, image, bundle, json.loads(body)["predicateType"], TIME)


def rules(report: Any) -> set[str]:
    return {f.rule for f in report.failures}


def test_a_released_candidate_verifies_and_the_report_says_by_whom(world: World) -> None:
    world.release()
    report = world.verify()
    report.require()
    assert report.ok
    assert report.signer == world.signer.name
    assert report.gate == world.gate()
    assert report.to_data()["attestations"] == sorted({SIGNATURE_TYPE, PROVENANCE_TYPE, GATE_TYPE})


def test_an_image_nobody_signed_is_refused(world: World) -> None:
    report = world.verify()
    assert rules(report) == {"signature", "gate", "provenance"}
    with pytest.raises(VerificationError, match="signature"):
        report.require()


@pytest.mark.parametrize("missing", [SIGNATURE_TYPE, PROVENANCE_TYPE, GATE_TYPE])
def test_everything_a_release_says_is_needed(world: World, missing: str) -> None:
    if missing != SIGNATURE_TYPE:
        sign_image(world.store, world.image, world.signer)
    for kind, predicate in (
        (PROVENANCE_TYPE, world.provenance()),
        (GATE_TYPE, world.gate().to_data()),
    ):
        if kind != missing:
            attest(world.store, world.image, world.signer, kind, predicate)
    expected = {SIGNATURE_TYPE: "signature", PROVENANCE_TYPE: "provenance", GATE_TYPE: "gate"}
    assert rules(world.verify()) == {expected[missing]}


def test_another_key_counts_for_nothing(world: World) -> None:
    world.signer = world.other_signer
    world.release()
    report = world.verify()
    assert rules(report) == {"signature", "gate", "provenance"}
    assert any("not signed by a key of the policy" in line for line in report.ignored)
    both = SigningPolicy(public_keys=(*world.policy.public_keys, world.other_signer.public_pem))
    assert world.verify(policy=both).ok


def test_signatures_of_another_image_count_for_nothing(world: World) -> None:
    """They are moved with everything but their content: referrer, subject and legacy tag say this image."""
    world.release()
    victim = world.push(b'{"evil": true}')
    for descriptor in attachments.bundle_descriptors(world.store, world.image):
        bundle = attachments.read_bundle(world.store, world.image, descriptor)
        kind = descriptor.annotations["dev.sigstore.bundle.predicateType"]
        attachments.attach_bundle(world.store, victim, bundle, kind, TIME)
    for legacy in attachments.legacy_signatures(world.store, world.image):
        attachments.attach_legacy(world.store, victim, legacy.payload, legacy.annotations)
    report = world.verify(image=victim)
    assert rules(report) == {"signature", "gate", "provenance"}
    assert any(f"signed for {world.image.digest}" in line for line in report.ignored)


def test_a_failed_gate_signed_by_hand_with_the_right_key_is_refused_beside_a_passed_one(
    world: World,
) -> None:
    world.release()
    assert world.verify().ok
    failed = world.gate(report=world.report(evaluation=Decision.FAIL))
    body = statement(world.image, GATE_TYPE, failed.to_data())
    sign_by_hand(world, world.image, body, world.signer)
    report = world.verify()
    assert rules(report) == {"gate"}
    assert "evaluation: fail" in report.failures[0].message


@pytest.mark.parametrize("decision", [Decision.FAIL, Decision.INSUFFICIENT_DATA])
def test_a_failed_gate_whose_result_was_rewritten_before_it_was_signed_is_refused(
    world: World, decision: Decision
) -> None:
    sign_image(world.store, world.image, world.signer)
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance())
    failed = world.gate(report=world.report(benchmark=decision)).to_data()
    body = statement(world.image, GATE_TYPE, {**failed, "result": "PASSED"})
    sign_by_hand(world, world.image, body, world.signer)
    report = world.verify()
    assert rules(report) == {"gate"}
    assert any("the report says otherwise" in line for line in report.ignored)


def test_a_gate_passed_by_the_same_weights_served_otherwise_does_not_count(world: World) -> None:
    world.release()
    serving = world.candidate.serving.model_copy(update={"args": ("--max-num-batched-tokens=64",)})
    other = world.candidate.model_copy(update={"serving": serving})
    report = world.verify(candidate=other.digest)
    assert rules(report) == {"gate"}
    assert other.digest in report.failures[0].message


def test_a_predicate_that_claims_another_candidate_than_its_parts_make_is_refused(
    world: World,
) -> None:
    world.release()
    other = Digest.of_bytes(b"other candidate")
    forged = world.gate().to_data()
    forged["candidate"] = forged["report"]["candidate"] = other
    sign_by_hand(world, world.image, statement(world.image, GATE_TYPE, forged), world.signer)
    assert rules(world.verify(candidate=other)) == {"gate"}


@pytest.mark.parametrize("required", [(), ("scan", "evaluation", "benchmark", "red-team")])
def test_gates_that_the_policy_asks_for_must_all_have_passed_and_there_must_be_some(
    world: World, required: tuple[str, ...]
) -> None:
    world.release()
    assert rules(world.verify(require_gates=required)) == {"gate"}


def test_a_scan_that_was_old_when_the_gates_decided_expires_from_when_it_was_made(
    world: World,
) -> None:
    sign_image(world.store, world.image, world.signer)
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance())
    gate = world.gate(scanned_at="2025-12-13T03:04:05Z")
    attest(world.store, world.image, world.signer, GATE_TYPE, gate)
    decided, month = datetime.fromisoformat(TIME), timedelta(days=30)
    assert world.verify(max_age=month, now=decided + timedelta(days=9)).ok
    report = world.verify(max_age=month, now=decided + timedelta(days=11))
    assert rules(report) == {"age"}
    assert "scanned at 2025-12-13" in report.failures[0].message


def test_evidence_can_be_too_old_and_is_never_from_the_future(world: World) -> None:
    world.release()
    decided = datetime.fromisoformat(TIME)
    month = timedelta(days=30)
    assert world.verify(max_age=month, now=decided + month).ok
    assert rules(world.verify(max_age=month, now=decided + month * 2)) == {"age"}
    assert rules(world.verify(max_age=month, now=decided - timedelta(hours=1))) == {"age"}
    for descriptor in attachments.bundle_descriptors(world.store, world.image):
        bundle = attachments.read_bundle(world.store, world.image, descriptor)
        kind = descriptor.annotations["dev.sigstore.bundle.predicateType"]
        attachments.attach_bundle(world.store, world.image, bundle, kind, "2026-03-01T00:00:00Z")
    replayed = world.verify(max_age=month, now=decided + month * 2)
    assert rules(replayed) == {"age"}, "attaching it anew does not make it new"
    attest(
        world.store,
        world.image,
        world.signer,
        GATE_TYPE,
        world.gate(decided_at=(decided + month).astimezone(UTC).isoformat()),
    )
    assert world.verify(max_age=month, now=decided + month * 2).ok


@pytest.mark.parametrize(
    ("rule", "policy", "made"),
    [
        ("builder", ProvenancePolicy(builders=("https://ci.example/release",)), {}),
        ("builder", ProvenancePolicy(), {"builder": "https://laptop.example/"}),
        ("source", ProvenancePolicy(sources=("meta-llama/*", "org/other")), {}),
        ("source", ProvenancePolicy(sources=("org/*",)), {"repo": "org/demo/evil"}),
        ("source", ProvenancePolicy(sources=("org/*",)), {"repo": "xorg/demo"}),
    ],
)
def test_a_source_or_a_builder_that_the_policy_does_not_list_is_refused_by_name(
    world: World, rule: str, policy: ProvenancePolicy, made: dict[str, str]
) -> None:
    sign_image(world.store, world.image, world.signer)
    attest(world.store, world.image, world.signer, PROVENANCE_TYPE, world.provenance(**made))
    attest(world.store, world.image, world.signer, GATE_TYPE, world.gate())
    signing = world.policy.model_copy(update={"provenance": policy})
    report = world.verify(policy=signing)
    assert rules(report) == {rule}
    assert set(made.values()) <= {
        word.strip("'") for f in report.failures for word in f.message.split()
    }
    listed = ProvenancePolicy(sources=("*/*", "org/demo/*"), builders=(BUILDER, *made.values()))
    if "xorg" not in str(made):
        assert world.verify(policy=world.policy.model_copy(update={"provenance": listed})).ok


def change_one_byte(path: Any) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def test_a_swapped_manifest_is_refused(world: World) -> None:
    world.release()
    other = world.push(b'{"other": "model"}')
    manifest = world.store.blob_path(other.digest).read_bytes()
    world.store.blob_path(world.image.digest).write_bytes(manifest)
    assert rules(world.verify()) == {"image"}


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-512])]
)
def test_an_image_that_lost_a_layer_or_a_part_of_one_is_refused(
    world: World, damage: Callable[[Any], object]
) -> None:
    world.release()
    layer = read_image_manifest(world.store, world.image).layers[-1]
    damage(world.store.blob_path(layer.digest))
    assert rules(world.verify()) == {"layers"}


def test_a_bundle_changed_in_the_store_counts_for_nothing(world: World) -> None:
    world.release()
    for descriptor in attachments.bundle_descriptors(world.store, world.image):
        body, _ = world.store.get_manifest(world.image.repository, descriptor.digest)
        change_one_byte(world.store.blob_path(Digest(json.loads(body)["layers"][0]["digest"])))
    assert rules(world.verify()) == {"gate", "provenance"}, "the legacy signature still stands"


def test_a_candidate_is_refused_when_its_evidence_has_expired_and_what_serves_is_not(
    world: World,
) -> None:
    """The flows ask this before the first commit and before every raise. A rollback must not fail for stable's age."""
    world.release()
    sign_image(world.store, world.candidate.runtime, world.signer)
    workspace = Workspace(Settings(workspace=world.directory, store=f"oci:{world.store.root}"))
    policy = Policy(signing=world.policy, max_evidence_age_days=1)
    model, runtime = verifications(workspace, world.candidate, policy)
    assert rules(model) == {"age"}
    assert runtime.ok
    assert all(r.ok for r in verifications(workspace, world.candidate, policy, serves=True))


def test_a_payload_changed_under_its_signature_counts_for_nothing(world: World) -> None:
    world.release()
    victim = world.push(b'{"evil": true}')
    for descriptor in attachments.bundle_descriptors(world.store, world.image):
        envelope = envelope_of(
            parse_bundle(attachments.read_bundle(world.store, world.image, descriptor))
        )
        payload = envelope.payload.replace(
            world.image.digest.hex.encode(), victim.digest.hex.encode()
        )
        bundle = key_bundle(Envelope(payload, envelope.signature), "hint")
        attachments.attach_bundle(world.store, victim, bundle, SIGNATURE_TYPE, TIME)
    assert rules(world.verify(image=victim)) == {"signature", "gate", "provenance"}


def test_the_legacy_signature_alone_is_a_signature(world: World) -> None:
    payload = attachments.legacy_payload(world.image)
    annotations = world.signer.sign_image_digest(payload, world.image.digest)
    attachments.attach_legacy(world.store, world.image, payload, annotations)
    report = world.verify(candidate=None, require_gates=())
    assert report.ok
    assert report.signer == world.signer.name


@pytest.mark.parametrize(
    "policy",
    [
        SigningPolicy(),
        SigningPolicy(public_keys=("not a key",)),
        SigningPolicy(identity="ci@example.com"),
    ],
    ids=["nobody", "no key", "no issuer"],
)
def test_a_policy_that_names_no_signer_lets_nothing_through(
    world: World, policy: SigningPolicy
) -> None:
    world.release()
    assert "policy" in rules(world.verify(policy=policy))


def test_a_runtime_image_needs_a_signature_and_nothing_else(world: World) -> None:
    runtime = world.candidate.runtime
    arguments = {"image": runtime, "candidate": None, "require_gates": ()}
    assert rules(world.verify(**arguments)) == {"signature"}
    sign_image(world.store, runtime, world.signer)
    assert world.verify(**arguments).ok


def test_a_store_that_cannot_be_asked_is_no_approval_and_no_verdict(world: World) -> None:
    world.release()
    (world.store.root / "index.json").write_text("{")
    report = world.verify()
    assert not report.ok
    assert rules(report) == {"store"}
    with pytest.raises(RegistryError, match=r"index\.json"):
        report.require()
    nowhere = verify(
        open_store(f"oci:{world.directory}/nowhere"),
        world.image,
        world.policy,
        candidate=world.candidate.digest,
        require_gates=REQUIRED_GATES,
    )
    assert not nowhere.ok


@pytest.mark.parametrize(
    "bundle",
    [
        b"",
        b"[]",
        b'{"mediaType": "application/json"}',
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}',
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": []}',
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope":'
        b' {"payloadType": "text/plain", "payload": "", "signatures": []}}',
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope":'
        b' {"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": [{}, {}]}}',
    ],
)
def test_rubbish_beside_a_release_neither_helps_nor_harms(world: World, bundle: bytes) -> None:
    attachments.attach_bundle(world.store, world.image, bundle, SIGNATURE_TYPE, TIME)
    assert rules(world.verify()) == {"signature", "gate", "provenance"}
    world.release()
    assert world.verify().ok


def test_a_signed_statement_that_is_none_counts_for_nothing(world: World) -> None:
    for body in (b"{}", b"[]", b'{"_type": "https://in-toto.io/Statement/v1", "subject": [{}]}'):
        bundle = world.signer._sign_statement(body)
        attachments.attach_bundle(world.store, world.image, bundle, SIGNATURE_TYPE, TIME)
    assert rules(world.verify()) == {"signature", "gate", "provenance"}


def test_verifying_with_a_key_does_not_load_sigstores_library() -> None:
    code = (
        "import sys, lockgate.adapters.signing; print([m for m in sys.modules if 'sigstore' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "[]"
