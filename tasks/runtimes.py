"""Runtime images take the same road as models: mirrored, scanned, signed, and refused where they were not.

A release runs weights inside somebody else's image. What `import_runtime` signed is what was scanned, by digest; the embedded
cluster's own runtime is a description that Lockgate itself makes and needs no import.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.cache_policies import NO_CACHE

from lockgate.adapters import signing
from lockgate.adapters.oci import ImageStore, open_store
from lockgate.adapters.oci.copying import copy_image, image_for_platform
from lockgate.adapters.scanners import trivy
from lockgate.adapters.signing import VerificationReport
from lockgate.domain.attestation import RUNTIME_TYPE, RuntimePredicate
from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence
from lockgate.domain.gates import Decision, GateResult
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ImageScanPolicy, Policy
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import ReleaseSpec
from lockgate.errors import GateRefused
from tasks.retries import TRANSIENT
from tasks.steps import step
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")


class ImportedRuntime(Frozen):
    """What `import_runtime` made."""

    image: ImageRef
    """In the workspace's store: what a spec names as `runtime`."""
    predicate: RuntimePredicate
    scan: GateResult


def import_runtime(
    workspace: Workspace,
    source: ImageRef,
    policy: Policy,
    *,
    engine: str,
    origin: ImageStore | None = None,
    platform: str = "linux/amd64",
) -> ImportedRuntime:
    """Mirror an image into the workspace's store, scan the mirror with trivy, sign it and attest the scan.

    `source` lies in the registry that its name begins with, or in `origin`. Of an index the image of `platform` is taken: one
    image is scanned, signed and run. Importing again scans again, by what trivy knows today, and attests that beside. Raises
    `GateRefused` for findings and for a scan that could not be made: then the mirror stays unsigned.
    """
    origin = origin or open_store(
        source.repository.partition("/")[0], plain_http=workspace.settings.plain_http
    )
    single = image_for_platform(origin, source, platform)
    logger.info("mirroring %s", single)
    image = copy_image(
        origin, single, workspace.store, workspace.settings.runtime_repository(engine),
        tag=f"runtime-{single.digest.hex}", referrers=False,
    )  # fmt: skip
    log = workspace.layout.logs / f"trivy-runtime-{image.digest.short}.log"
    logger.info("scanning %s", image)
    evidence = scan_stored_image(workspace, image, policy.images, log)
    document = workspace.records.put_document(evidence.to_data())
    now = datetime.now(UTC)
    result = scan_gate(
        [evidence], policy, now=now, subjects=[image.digest], required_kinds=("image",)
    )
    if result.decision is not Decision.PASS:
        raise GateRefused(
            "scan", f"{image} is not signed: " + "; ".join(result.reasons), log=log,
            hint="choose another runtime image, or have the policy changed by whoever answers for it",
        )  # fmt: skip
    predicate = RuntimePredicate(
        result="PASSED", source=single, image=image, policy=policy.content_digest(), scan=document,
        reasons=result.reasons, scanned_at=rfc3339(now),
    )  # fmt: skip
    signer = workspace.signer()
    signing.sign_image(workspace.store, image, signer)
    signing.attest(workspace.store, image, signer, RUNTIME_TYPE, predicate)
    verify_runtime(workspace, image, policy).require()
    return ImportedRuntime(image=image, predicate=predicate, scan=result)


def verify_runtime(
    workspace: Workspace, image: ImageRef, policy: Policy, *, serves: bool = False
) -> VerificationReport:
    """Signed by whom the policy names and, where it was imported, scanned lately enough; `serves` leaves its age out."""
    max_age = None if serves else timedelta(days=policy.max_evidence_age_days)
    return signing.verify_runtime(
        workspace.store, image, policy.signing, max_age=max_age, now=datetime.now(UTC)
    )


@step(name="check-runtime", cache_policy=NO_CACHE, **TRANSIENT)
def check_runtime(spec: ReleaseSpec, policy: Policy) -> None:
    """Refuse a release on an unsigned runtime before anything is fetched. Raises `VerificationError`."""
    if spec.runtime is not None:
        report = verify_runtime(Workspace.current(), spec.runtime, policy)
        report.require(
            hint=f"`lockgate runtime import {spec.runtime}` mirrors, scans and signs a runtime image"
        )


def scan_of(report: VerificationReport) -> Digest | None:
    """The scan that the newest import of a verified runtime attests; None for the embedded cluster's description."""
    return report.runtime.scan if report.runtime is not None else None


def scan_stored_image(
    workspace: Workspace, image: ImageRef, policy: ImageScanPolicy, log: Path
) -> ScanEvidence:
    """trivy over an image of the workspace's store; out of a registry it is copied beside for as long as that takes."""
    with _as_layout(workspace, image) as layout:
        return trivy.scan_image_layout(layout, image, policy, log=log)


@contextmanager
def _as_layout(workspace: Workspace, image: ImageRef) -> Iterator[Path]:
    location = workspace.settings.store_location
    if location.startswith("oci:"):
        yield Path(location.removeprefix("oci:"))
        return
    parent = workspace.layout.root / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        local = open_store(f"oci:{name}")
        copy_image(workspace.store, image, local, image.repository, referrers=False)
        yield Path(name)
