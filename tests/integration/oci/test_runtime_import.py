"""The runtime's road: mirrored, scanned by a real trivy, signed; and a release on an image that did not take it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lockgate.adapters import signing
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.signing import generate_key
from lockgate.adapters.sources import read_snapshot
from lockgate.cli.app import app
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence
from lockgate.domain.gates.base import REQUIRED_GATES, Decision, GateReport, GateResult
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import Policy, SigningPolicy
from lockgate.domain.spec import ServingSpec
from lockgate.domain.stores import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from lockgate.errors import GateRefused, VerificationError
from lockgate.settings import Settings
from tasks.runtimes import check_runtime, import_runtime, verify_runtime
from tasks.supply import sign_candidate
from tasks.workspace import Workspace
from tests.integration.intake.vulnerability_database import write_database

Registry = Any
# Made up, of the form that trivy's rule looks for.
LEAK = "token = ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"
UPSTREAM = "docker.example/vllm/vllm-openai"


@dataclass
class Site:
    workspace: Workspace
    policy: Policy
    origin: LayoutStore
    directory: Path

    def upstream(self, name: str, note: str) -> ImageRef:
        """An image in somebody else's registry."""
        directory = self.directory / name
        directory.mkdir()
        (directory / "notes.txt").write_text(note + "\n")
        return push_model(self.origin, UPSTREAM, directory, read_snapshot(directory), labels={})

    def imported(self, source: ImageRef) -> Any:
        return import_runtime(
            self.workspace, source, self.policy, engine="vllm", origin=self.origin
        )


@pytest.fixture
def site(registry: Registry, trivy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name, value in {
        "LOCKGATE_TRIVY": trivy,
        "TRIVY_CACHE_DIR": tmp_path / "cache",
        "LOCKGATE_WORKSPACE": tmp_path / "workspace",
        "LOCKGATE_STORE": registry.host,
        "LOCKGATE_REPOSITORY": registry.host,
    }.items():
        monkeypatch.setenv(name, str(value))
    write_database(tmp_path / "cache", datetime.now(UTC), "engine", "1.0.0", "CVE-2099-1234")
    workspace = Workspace(Settings())
    generate_key(workspace.layout.private_key, workspace.layout.public_key)
    policy = Policy(
        signing=SigningPolicy(public_keys=(workspace.layout.public_key.read_text(),)),
    )
    return Site(workspace, policy, LayoutStore(tmp_path / "upstream"), tmp_path)


def test_a_clean_image_is_mirrored_signed_and_says_what_scanned_it(site: Site) -> None:
    source = site.upstream("clean", "nothing here")
    body, media_type = site.origin.get_manifest(UPSTREAM, source.digest)
    entry = Descriptor(media_type, source.digest, len(body)).to_data()
    index = {
        "schemaVersion": 2, "mediaType": IMAGE_INDEX,
        "manifests": [
            {"mediaType": IMAGE_MANIFEST, "digest": Digest.of_bytes(b"arm"), "size": 3,
             "platform": {"os": "linux", "architecture": "arm64"}},
            {**entry, "platform": {"os": "linux", "architecture": "amd64"}},
        ],
    }  # fmt: skip
    digest = site.origin.put_manifest(UPSTREAM, json.dumps(index).encode(), IMAGE_INDEX)
    made = [site.imported(ImageRef(repository=UPSTREAM, digest=digest)) for _ in range(2)][-1]
    assert made.image.digest == source.digest
    assert made.image.repository.startswith(f"{site.workspace.settings.repository}/runtimes/")
    report = verify_runtime(site.workspace, made.image, site.policy)
    report.require()
    assert report.runtime is not None
    assert report.runtime.source == source
    scan = ScanEvidence.model_validate(site.workspace.records.get_document(report.runtime.scan))
    assert scan.subject == source.digest
    assert {run.name for run in scan.runs} == {"trivy", "trivy-database"}
    assert all(run.version for run in scan.runs)
    store, signers = site.workspace.store, site.policy.signing
    later = datetime.now(UTC) + timedelta(days=40)
    late = signing.verify_runtime(store, made.image, signers, max_age=timedelta(days=30), now=later)
    assert {failure.rule for failure in late.failures} == {"age"}


def test_the_command_imports_and_a_stranger_verifies_by_reference_and_policy_alone(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = site.upstream("clean", "nothing here")
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(site.policy.to_data()))
    policy = ["--policy", str(tmp_path / "policy.yaml")]
    place = ["--from", f"oci:{site.origin.root}"]
    imported = CliRunner().invoke(
        app, ["runtime", "import", str(source), *place, *policy], catch_exceptions=False
    )
    assert imported.exit_code == 0, imported.output
    reference = imported.stdout.strip().splitlines()[-1]
    assert ImageRef.parse(reference).digest == source.digest
    for name in ("LOCKGATE_STORE", "LOCKGATE_REPOSITORY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "stranger"))
    verified = CliRunner().invoke(
        app, ["verify", "--runtime", reference, *policy], catch_exceptions=False
    )
    assert (verified.exit_code, verified.stdout) == (0, "verified\n")


def test_an_image_with_findings_stays_unsigned_and_no_release_runs_on_it(site: Site) -> None:
    source = site.upstream("leaky", LEAK)
    with pytest.raises(GateRefused, match="is not signed"):
        site.imported(source)
    repository = site.workspace.settings.runtime_repository("vllm")
    mirror = ImageRef(repository=repository, digest=source.digest)
    report = verify_runtime(site.workspace, mirror, site.policy)
    assert {failure.rule for failure in report.failures} == {"signature"}

    spec = type("Spec", (), {"runtime": mirror})()
    with pytest.raises(VerificationError, match="no signature") as caught:
        check_runtime.fn(spec, site.policy)
    assert "lockgate runtime import" in str(caught.value)

    model = push_model(
        site.workspace.store, site.workspace.settings.model_repository("m"),
        site.directory / "leaky", read_snapshot(site.directory / "leaky"), labels={},
    )  # fmt: skip
    candidate = Candidate(model=model, runtime=mirror, serving=ServingSpec(served_model_name="m"))
    passed = tuple(
        GateResult(gate=gate, decision=Decision.PASS, reasons=("measured",))
        for gate in REQUIRED_GATES
    )
    gates = GateReport(candidate=candidate.digest, results=passed)
    with pytest.raises(VerificationError, match="runtimes/vllm"):
        sign_candidate.fn(None, candidate, site.policy, gates, None)
    assert site.workspace.store.referrers(model.repository, model.digest) == []
