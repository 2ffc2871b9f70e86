"""The real trivy over a real layout and real manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.scanners.trivy import LocalTrivy, scan_image_layout, scan_manifests
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.evidence import ScannerStatus
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ImageScanPolicy, Policy

REPOSITORY = "lockgate.local/models/x"
# Made up, of the form that trivy's rule looks for.
LEAK = "token = ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: x}
spec:
  selector: {matchLabels: {app: x}}
  template:
    metadata: {labels: {app: x}}
    spec:
      containers:
        - name: c
          image: example.org/x@sha256:%s
          securityContext: {privileged: true}
""" % ("0" * 64)


@pytest.fixture
def scanner(trivy: Path, tmp_path: Path) -> LocalTrivy:
    return LocalTrivy(trivy, cache=tmp_path / "cache")


def _images(tmp_path: Path) -> tuple[Path, ImageRef, ImageRef]:
    """A layout of two images: one clean, one with a leaked token."""
    store = open_store(f"oci:{tmp_path / 'store'}")
    refs = []
    for name, note in (("clean", "nothing here"), ("leaky", LEAK)):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        (directory / "notes.txt").write_text(note + "\n")
        refs.append(push_model(store, REPOSITORY, directory, read_snapshot(directory), labels={}))
    return tmp_path / "store", refs[0], refs[1]


def test_trivy_tells_the_leaking_image_of_a_layout_from_the_clean_one(
    scanner: LocalTrivy, tmp_path: Path
) -> None:
    layout, clean, leaky = _images(tmp_path)
    before = sorted(path for path in layout.rglob("*"))
    policy = ImageScanPolicy(scanners=("secret", "misconfig"))
    log = tmp_path / "log"
    for image, expected in ((clean, Decision.PASS), (leaky, Decision.FAIL)):
        evidence = scan_image_layout(layout, image, policy, log=log, scanner=scanner)
        assert [run.status for run in evidence.runs] == [ScannerStatus.COMPLETED]
        assert evidence.runs[0].version
        result = scan_gate([evidence], Policy(images=policy), required_kinds=("image",))
        assert result.decision is expected, result.reasons
    assert sorted(path for path in layout.rglob("*")) == before


def test_without_a_database_a_policy_that_wants_vulnerabilities_is_not_satisfied(
    scanner: LocalTrivy, tmp_path: Path
) -> None:
    layout, clean, _ = _images(tmp_path)
    evidence = scan_image_layout(
        layout, clean, ImageScanPolicy(), log=tmp_path / "log", scanner=scanner
    )
    required = scan_gate([evidence], Policy(), required_kinds=("image",))
    assert required.decision is Decision.FAIL
    optional = Policy(images=ImageScanPolicy(trivy="optional"))
    result = scan_gate([evidence], optional, required_kinds=("image",))
    assert result.decision is Decision.PASS
    assert "NOT SCANNED" in " ".join(result.reasons)


def test_a_privileged_deployment_is_refused_and_a_config_map_is_not(
    scanner: LocalTrivy, tmp_path: Path
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    for directory in (bad, good):
        directory.mkdir()
        (directory / "map.yaml").write_text(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata: {a: b}\n"
        )
    (bad / "deployment.yaml").write_text(DEPLOYMENT)
    for directory, expected in ((bad, Decision.FAIL), (good, Decision.PASS)):
        evidence = scan_manifests(
            directory, ImageScanPolicy(), log=tmp_path / "log", scanner=scanner
        )
        result = scan_gate([evidence], Policy(), required_kinds=("manifests",))
        assert result.decision is expected, result.reasons
