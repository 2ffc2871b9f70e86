"""Signing: once, never what failed, never with a key that others may read or replace."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.signing import (
    KeySigner,
    attachments,
    attest,
    generate_key,
    sign_image,
)
from lockgate.domain.attestation import GATE_TYPE, SBOM_TYPE, SIGNATURE_TYPE, statement
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import Decision
from lockgate.domain.images import ImageRef
from lockgate.domain.stores import IMAGE_MANIFEST
from lockgate.errors import Refused, RegistryError, SigningError

World = Any


@pytest.mark.parametrize("decision", [Decision.FAIL, Decision.INSUFFICIENT_DATA])
def test_a_gate_report_that_did_not_pass_is_never_signed(world: World, decision: Decision) -> None:
    failed = world.gate(report=world.report(evaluation=decision))
    with pytest.raises(Refused, match="never signed"):
        attest(world.store, world.image, world.signer, GATE_TYPE, failed)
    rewritten = {**failed.to_data(), "result": "PASSED"}
    with pytest.raises(Refused, match="never signed"):
        attest(world.store, world.image, world.signer, GATE_TYPE, rewritten)
    assert attachments.bundle_descriptors(world.store, world.image) == []


def test_a_gate_report_without_a_required_gate_is_never_signed(world: World) -> None:
    report = world.report()
    partial = report.model_copy(update={"results": report.results[:2]})
    with pytest.raises(Refused, match="benchmark: no result"):
        attest(world.store, world.image, world.signer, GATE_TYPE, world.gate(report=partial))


def test_a_gate_predicate_is_signed_for_its_own_image_only(world: World) -> None:
    other = world.push(b'{"other": "model"}')
    with pytest.raises(Refused, match="not sha256"):
        attest(world.store, other, world.signer, GATE_TYPE, world.gate())


def test_only_statements_are_signed(world: World) -> None:
    two = json.loads(statement(world.image, SIGNATURE_TYPE, {}))
    two["subject"] *= 2
    for body in (b"pay Eve", json.dumps(two).encode()):
        with pytest.raises(SigningError):
            world.signer.sign_statement(body)


def test_signing_again_adds_nothing(world: World) -> None:
    for _ in range(2):
        world.release()
    assert len(attachments.bundle_descriptors(world.store, world.image)) == 3
    assert len(list(attachments.legacy_signatures(world.store, world.image))) == 1


def test_a_second_signer_adds_to_the_first(world: World) -> None:
    for signer in (world.signer, world.other_signer):
        sign_image(world.store, world.image, signer)
        attest(world.store, world.image, signer, SBOM_TYPE, {"bomFormat": "CycloneDX"})
    assert len(attachments.bundle_descriptors(world.store, world.image)) == 4
    assert len(list(attachments.legacy_signatures(world.store, world.image))) == 2


@pytest.mark.parametrize("body", [b"{}", b'{"layers": [{"digest": 5}]}', b'{"layers": "x"}'])
def test_what_somebody_left_under_the_tag_of_signatures_keeps_nobody_from_signing(
    world: World, body: bytes
) -> None:
    tag = attachments.legacy_tag(world.image.digest)
    world.store.put_manifest(world.image.repository, body, IMAGE_MANIFEST, tag)
    sign_image(world.store, world.image, world.signer)
    assert len(list(attachments.legacy_signatures(world.store, world.image))) == 1


def test_an_image_that_is_not_there_is_not_signed(world: World) -> None:
    absent = ImageRef(repository="lockgate.local/demo", digest=Digest.of_bytes(b"absent"))
    with pytest.raises(RegistryError, match=absent.digest):
        sign_image(world.store, absent, world.signer)


def test_a_bundle_is_stored_as_cosign_looks_for_it(world: World) -> None:
    sign_image(world.store, world.image, world.signer)
    (descriptor,) = attachments.bundle_descriptors(world.store, world.image)
    manifest = json.loads(world.store.get_manifest(world.image.repository, descriptor.digest)[0])
    bundle_type = "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert manifest["artifactType"] == descriptor.artifact_type == bundle_type
    assert manifest["subject"]["digest"] == world.image.digest
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [bundle_type]
    assert manifest["annotations"]["dev.sigstore.bundle.content"] == "dsse-envelope"
    assert manifest["annotations"]["dev.sigstore.bundle.predicateType"] == SIGNATURE_TYPE


def test_a_key_is_its_owners_alone_and_is_never_replaced(tmp_path: Path) -> None:
    private, public = tmp_path / "keys" / "release.key", tmp_path / "keys" / "release.pub"
    generate_key(private, public)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    generate_key(private, public)
    public.unlink()
    generate_key(private, public)
    assert (private.read_bytes(), public.read_bytes()) == before
    generate_key(tmp_path / "other", tmp_path / "other.pub")
    with pytest.raises(SigningError, match="not the public half"):
        generate_key(private, tmp_path / "other.pub")


def test_what_is_no_release_key_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match=r"absent\.key"):
        KeySigner(tmp_path / "absent.key")
    with pytest.raises(SigningError) as caught:
        KeySigner("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----")
    assert "c2VjcmV0" not in str(caught.value)
