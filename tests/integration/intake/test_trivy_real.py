"""The real trivy over a real layout and real manifests."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.scanners.trivy import LocalTrivy, scan_image_layout, scan_manifests
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScannerStatus
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import image_config, image_manifest
from lockgate.domain.policy import ImageScanPolicy, Policy
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from lockgate.domain.stores import IMAGE_LAYER, IMAGE_MANIFEST, Descriptor
from serving.manifests import render
from tests.integration.intake.vulnerability_database import write_database

REPOSITORY = "lockgate.local/models/x"
# Made up, of the form that trivy's rule looks for.
LEAK = "token = ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"

TEMPLATE = Path(__file__).parents[3] / "gitops_repo_template"


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
        result = scan_gate(
            [evidence], Policy(images=policy), now=datetime.now(UTC), required_kinds=("image",)
        )
        assert result.decision is expected, result.reasons
    assert sorted(path for path in layout.rglob("*")) == before


def _runtime(layout: Path, version: str) -> ImageRef:
    """An image as runtimes are: an operating system and a package of Python, in compressed layers."""
    store = open_store(f"oci:{layout}")
    package = f"usr/lib/python3.11/site-packages/engine-{version}.dist-info/METADATA"
    told = f"Metadata-Version: 2.1\nName: engine\nVersion: {version}\n"
    descriptors, diff_ids = [], []
    for name, body in (("etc/os-release", 'ID=other\nNAME="Other"\n'), (package, told)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body.encode()))
        packed = gzip.compress(buffer.getvalue())
        digest = store.put_blob(REPOSITORY, None, [packed], len(packed))
        descriptors.append(Descriptor(f"{IMAGE_LAYER}+gzip", digest, len(packed)))
        diff_ids.append(Digest.of_bytes(buffer.getvalue()))
    config = image_config({}, diff_ids)
    store.put_blob(REPOSITORY, None, [config], len(config))
    digest = store.put_manifest(REPOSITORY, image_manifest(config, descriptors), IMAGE_MANIFEST)
    return ImageRef(repository=REPOSITORY, digest=digest)


@pytest.mark.parametrize(
    ("version", "days", "refused"),
    [("0.9.0", 1, "CVE-2099-1234"), ("1.0.0", 1, None), ("1.0.0", 30, "trivy-database")],
    ids=["vulnerable", "patched", "by an old database"],
)
def test_a_runtime_with_a_known_vulnerability_is_refused_and_so_is_one_that_only_an_old_database_cleared(
    version: str, days: int, refused: str | None, scanner: LocalTrivy, tmp_path: Path
) -> None:
    made = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days)
    write_database(tmp_path / "cache", made, "engine", "1.0.0", "CVE-2099-1234")
    image = _runtime(tmp_path / "layout", version)
    evidence = scan_image_layout(
        tmp_path / "layout", image, ImageScanPolicy(), log=tmp_path / "log", scanner=scanner
    )
    runs = {run.name: run for run in evidence.runs}
    assert {run.status for run in evidence.runs} == {ScannerStatus.COMPLETED}
    assert runs["trivy"].version
    assert datetime.fromisoformat(runs["trivy-database"].version or "") == made
    result = scan_gate([evidence], Policy(), now=datetime.now(UTC), required_kinds=("image",))
    assert (result.decision is Decision.PASS) == (refused is None), result.reasons
    assert refused is None or refused in " ".join(result.reasons)


def test_without_a_database_a_policy_that_wants_vulnerabilities_is_not_satisfied(
    scanner: LocalTrivy, tmp_path: Path
) -> None:
    layout, clean, _ = _images(tmp_path)
    evidence = scan_image_layout(
        layout, clean, ImageScanPolicy(), log=tmp_path / "log", scanner=scanner
    )
    required = scan_gate([evidence], Policy(), now=datetime.now(UTC), required_kinds=("image",))
    assert required.decision is Decision.FAIL
    optional = Policy(images=ImageScanPolicy(trivy="optional"))
    result = scan_gate([evidence], optional, now=datetime.now(UTC), required_kinds=("image",))
    assert result.decision is Decision.PASS
    assert "NOT SCANNED" in " ".join(result.reasons)


def test_the_manifests_of_a_release_pass_and_with_a_privileged_container_they_do_not(
    scanner: LocalTrivy, kubectl: Path, tmp_path: Path
) -> None:
    shutil.copytree(TEMPLATE / "apps", tmp_path / "repo" / "apps")
    image = ImageRef(repository=REPOSITORY, digest=Digest.of_bytes(b"image"))
    candidate = Candidate(model=image, runtime=image, serving=ServingSpec(served_model_name="m"))
    occupant = Occupant(candidate=candidate, release="one", evidence=Digest.of_bytes(b"evidence"))
    state = ReleaseState(
        model="m", environment="local", phase=Phase.STABLE, a=occupant, stable=Slot.A,
        canary=CanarySpec(steps=(CanaryStep(weight=5),)),
    )  # fmt: skip
    rendered = render(state, tmp_path / "repo", kubectl=kubectl)
    good, bad = tmp_path / "good", tmp_path / "bad"
    for directory in (good, bad):
        directory.mkdir()
        for path, text in rendered.items():
            (directory / Path(path).name).write_text(text)
    for path in bad.iterdir():
        manifest = yaml.safe_load(path.read_text())
        if manifest["kind"] == "Deployment":
            for container in manifest["spec"]["template"]["spec"]["containers"]:
                container.setdefault("securityContext", {})["privileged"] = True
            path.write_text(yaml.safe_dump(manifest))
    for directory, expected in ((bad, Decision.FAIL), (good, Decision.PASS)):
        evidence = scan_manifests(
            directory, ImageScanPolicy(), log=tmp_path / "log", scanner=scanner
        )
        assert evidence.runs[0].version
        result = scan_gate(
            [evidence], Policy(), now=datetime.now(UTC), required_kinds=("manifests",)
        )
        assert result.decision is expected, result.reasons
