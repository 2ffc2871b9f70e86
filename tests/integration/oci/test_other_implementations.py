"""What Lockgate wrote, read by implementations that are not its own: a claim of a format is only worth what others read."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.images import read_image_manifest
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.scanners.trivy import LocalTrivy, scan_image_layout
from lockgate.adapters.signing import (
    KeylessSigner,
    KeySigner,
    attachments,
    attest,
    generate_key,
    sign_image,
)
from lockgate.adapters.signing import verify as lockgate_verify
from lockgate.adapters.signing.dsse import Envelope, envelope_of, key_bundle, parse_bundle
from lockgate.domain.attestation import SBOM_TYPE, SIGNATURE_TYPE
from lockgate.domain.evidence import ScannerStatus
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ImageScanPolicy
from lockgate.domain.sources import Snapshot
from lockgate.domain.stores import ImageStore
from tests.unit.signing.local_sigstore import IDENTITY, ISSUER, LocalSigstore, token

Model = tuple[Path, Snapshot]
Registry = Any
VERIFY_BUNDLE = Path(__file__).with_name("verify_bundle.mjs")
VERIFY_KEYLESS = Path(__file__).with_name("verify_keyless.mjs")


def said(command: Sequence[str | Path], *, status: int = 0, **environment: str) -> str:
    """What a program printed; it must end with `status`."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def signer(tmp_path: Path) -> KeySigner:
    for name in ("release", "other"):
        generate_key(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    return KeySigner(tmp_path / "release.key")


@pytest.fixture
def signed(registry: Registry, model: Model, signer: KeySigner) -> tuple[ImageStore, ImageRef]:
    store = open_store(registry.host)
    ref = push_model(store, f"{registry.host}/models/demo", *model, labels={})
    sign_image(store, ref, signer)
    attest(store, ref, signer, SBOM_TYPE, {"bomFormat": "CycloneDX"})
    return store, ref


def bundles(signed: tuple[ImageStore, ImageRef], directory: Path) -> list[Path]:
    paths = []
    for number, descriptor in enumerate(attachments.bundle_descriptors(*signed)):
        paths.append(directory / f"bundle-{number}.json")
        paths[-1].write_bytes(attachments.read_bundle(*signed, descriptor))
    return paths


def test_sigstores_javascript_verifies_our_bundles_and_none_of_another_key_or_content(
    signed: tuple[ImageStore, ImageRef], sigstore_js: Path, tmp_path: Path
) -> None:
    paths = bundles(signed, tmp_path)
    assert len(paths) == 2
    envelope = envelope_of(parse_bundle(paths[0].read_bytes()))
    hint = json.loads(paths[0].read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    changed = envelope.payload.replace(signed[1].digest.hex.encode(), b"0" * 64)
    paths.append(tmp_path / "changed.json")
    paths[-1].write_bytes(key_bundle(Envelope(changed, envelope.signature), hint))

    def verified(key: str) -> list[str]:
        return said(
            ["node", VERIFY_BUNDLE, sigstore_js, tmp_path / f"{key}.pub", *paths]
        ).splitlines()

    assert verified("release") == [
        "verified", "verified", "SIGNATURE_ERROR: signature verification failed"
    ]  # fmt: skip
    assert all(line.startswith("Error: key not found") for line in verified("other"))


def test_sigstores_javascript_verifies_what_an_identity_signed_in_both_forms(
    model: Model, sigstore_js: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    store = open_store(f"oci:{tmp_path / 'store'}")
    ref = push_model(store, "lockgate.local/demo", *model, labels={})
    sigstore = LocalSigstore()
    try:
        sign_image(store, ref, KeylessSigner(sigstore.policy(), identity_token=token(IDENTITY)))
    finally:
        sigstore.close()
    paths = bundles((store, ref), tmp_path)
    (legacy,) = attachments.legacy_signatures(store, ref)
    for name, payload in (
        ("legacy", legacy.payload),
        ("changed", legacy.payload.replace(ref.digest.hex.encode(), b"0" * 64)),
    ):
        paths.append(tmp_path / f"{name}.json")
        said_of_it = {
            "payload": base64.b64encode(payload).decode(),
            "annotations": dict(legacy.annotations),
        }
        paths[-1].write_text(json.dumps(said_of_it))
    trust = tmp_path / "trusted_root.json"
    trust.write_text(json.dumps(sigstore.trust_config()["trustedRoot"]))

    def verified(identity: str) -> list[str]:
        command = ["node", VERIFY_KEYLESS, sigstore_js, trust, identity, ISSUER, *paths]
        return said(command).splitlines()

    *sound, changed = verified(IDENTITY)
    assert sound == ["verified", "verified"]
    assert changed.startswith("SIGNATURE_ERROR")
    assert all(
        line.startswith("UNTRUSTED_SIGNER_ERROR") for line in verified("eve@example.com")[:2]
    )


def test_openssl_verifies_the_envelope_and_the_legacy_signature_and_nothing_else(
    signed: tuple[ImageStore, ImageRef], openssl: Path, tmp_path: Path
) -> None:
    store, ref = signed
    envelope = envelope_of(parse_bundle(bundles(signed, tmp_path)[0].read_bytes()))
    (legacy,) = attachments.legacy_signatures(store, ref)
    encoded = legacy.annotations["dev.cosignproject.cosign/signature"]
    assert json.loads(legacy.payload)["critical"]["image"]["docker-manifest-digest"] == ref.digest
    signature, content = tmp_path / "signature", tmp_path / "content"

    def verify(key: str, status: int) -> str:
        return said(
            [openssl, "dgst", "-sha256", "-verify", tmp_path / f"{key}.pub",
             "-signature", signature, content],
            status=status,
        )  # fmt: skip

    for body, made in (
        (envelope.signed_bytes, envelope.signature),
        (legacy.payload, base64.b64decode(encoded)),
    ):
        content.write_bytes(body)
        signature.write_bytes(made)
        assert "Verified OK" in verify("release", 0)
        assert "Verification failure" in verify("other", 1)
        content.write_bytes(body.replace(ref.digest.hex.encode(), b"0" * 64))
        assert "Verification failure" in verify("release", 1)


def test_skopeo_reads_the_image_and_copies_it_with_its_digest_into_a_layout_that_lockgate_reads(
    signed: tuple[ImageStore, ImageRef], skopeo: Path, tmp_path: Path, signer: KeySigner
) -> None:
    _, ref = signed
    source = f"docker://{ref}"
    seen = json.loads(said([skopeo, "inspect", "--tls-verify=false", source]))
    assert seen["Digest"] == ref.digest
    assert seen["Os"] == "linux"
    layers = read_image_manifest(*signed).layers
    assert seen["Layers"] == [layer.digest for layer in layers]
    copy = tmp_path / "copy"
    said(
        [skopeo, "--insecure-policy", "copy", "--src-tls-verify=false", "--preserve-digests",
         source, f"oci:{copy}:demo"],
        TMPDIR=str(tmp_path),
    )  # fmt: skip
    index = json.loads((copy / "index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [ref.digest]
    back = open_store(f"oci:{copy}")
    here = ImageRef(repository="lockgate.local/demo", digest=ref.digest)
    assert read_image_manifest(back, here).layers == layers
    # skopeo leaves signatures behind: without them the copy is refused.
    report = lockgate_verify(back, here, signer.own_policy, candidate=None, require_gates=())
    assert {failure.rule for failure in report.failures} == {"signature"}


def test_trivy_reads_the_files_in_the_layers(model: Model, trivy: Path, tmp_path: Path) -> None:
    store = open_store(f"oci:{tmp_path / 'store'}")
    ref = push_model(store, "lockgate.local/demo", *model, labels={})
    policy = ImageScanPolicy(scanners=("secret",))
    log = tmp_path / "trivy.log"
    scanner = LocalTrivy(trivy, cache=tmp_path / "cache")
    evidence = scan_image_layout(tmp_path / "store", ref, policy, log=log, scanner=scanner)
    assert [run.status for run in evidence.runs] == [ScannerStatus.COMPLETED], log.read_text()


def test_a_referrer_is_where_the_specification_looks_for_it(
    signed: tuple[ImageStore, ImageRef], skopeo: Path
) -> None:
    """The registry has no referrers API: any client finds the index under the tag that the specification names."""
    _, ref = signed
    tag = f"docker://{ref.repository}:sha256-{ref.digest.hex}"
    index = json.loads(said([skopeo, "inspect", "--tls-verify=false", "--raw", tag]))
    kinds = sorted(
        m["annotations"]["dev.sigstore.bundle.predicateType"] for m in index["manifests"]
    )
    assert kinds == sorted([SIGNATURE_TYPE, SBOM_TYPE])
    for entry in index["manifests"]:
        name = f"docker://{ref.repository}@{entry['digest']}"
        manifest = json.loads(said([skopeo, "inspect", "--tls-verify=false", "--raw", name]))
        assert manifest["subject"]["digest"] == ref.digest
