"""Scan again what serves, keep what was found, and hold what the policy wants held."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect.cache_policies import NO_CACHE

from lockgate.adapters import scanners
from lockgate.adapters.oci.package import snapshot_of
from lockgate.adapters.oci.runtime import read_runtime
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import Policy
from lockgate.domain.rescan import RescanOutcome, RescanRecord, Served, in_service, judge_rescan
from lockgate.domain.steps import StepKey
from lockgate.errors import IntegrityError, LockgateError, UsageError
from tasks import deciding
from tasks.events import FOUND, UNSCANNED, tell
from tasks.progress import as_fraction, progress
from tasks.recorded import recorded
from tasks.retries import TRANSIENT
from tasks.runtimes import scan_stored_image
from tasks.steps import step
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.rescan")

RECORD_VERSION = 1
BY = "lockgate rescan"


class Rescanned(Frozen):
    """A candidate's scans of now."""

    scans: tuple[ScanEvidence, ...]
    subjects: tuple[Digest, ...]
    """Digests that each have to have evidence."""


@step(name="read-served", cache_policy=NO_CACHE, **TRANSIENT)
def read_served(model: str | None, environment: str | None) -> tuple[Served, ...]:
    """Everything in service at the release branch's head.

    Raises:
        UsageError: a model is named that nothing serves.
    """
    repository = Workspace.current().gitops
    repository.sync()
    found = tuple(
        served
        for served in in_service(repository.states())
        if model in (None, served.model) and environment in (None, served.environment)
    )
    if model is not None and not found:
        raise UsageError(
            f"nothing of {model} is in service" + (f" in {environment}" if environment else ""),
            hint="`lockgate status` says where every model stands",
        )
    return found


@step(name="scan-served", cache_policy=NO_CACHE)
def scan_served(candidate: Candidate, policy: Policy) -> Rescanned:
    """Weights, model image and, where it was imported, the runtime image, by the scanners and databases of now. Never found from
    an earlier run: the same bytes are looked at because what is known of them may have changed."""
    workspace, image = Workspace.current(), candidate.model
    model, snapshot = workspace.stored_model(image), snapshot_of(workspace.store, image)
    logs = workspace.layout.logs
    with progress(f"scan {model.snapshot.short} again") as report:
        weights = scanners.scan_weights(
            workspace.materialise(model), snapshot, policy.weights,
            log_directory=logs, progress=as_fraction(report),
        )  # fmt: skip
    log = logs / f"trivy-image-{model.snapshot.short}.log"
    scans = [weights, scan_stored_image(workspace, image, policy.images, log)]
    subjects = [model.snapshot, image.digest]
    if not _is_description(workspace, candidate.runtime):
        log = logs / f"trivy-runtime-{candidate.runtime.digest.short}.log"
        scans.append(scan_stored_image(workspace, candidate.runtime, policy.images, log))
        subjects.append(candidate.runtime.digest)
    return Rescanned(scans=tuple(scans), subjects=tuple(subjects))


@step(name="keep-rescan", cache_policy=NO_CACHE, **TRANSIENT)
def keep_rescan(candidate: Candidate, found: Rescanned, policy: Policy) -> RescanRecord:
    """Judge the scans under the policy, and keep them and what they came to."""
    records = Workspace.current().records
    key = _key(candidate.digest)
    record = judge_rescan(
        candidate.digest, found.scans, policy, at=datetime.now(UTC), subjects=found.subjects,
        documents=[records.put_document(scan.to_data()) for scan in found.scans],
        before=recorded(records, key, RescanRecord),
    )  # fmt: skip
    records.put_document(record.to_data())
    records.record(key.content_digest(), {"key": key.to_data(), "result": record.to_data()})
    return record


@step(name="act-on-rescan", cache_policy=NO_CACHE, **TRANSIENT)
def act_on_rescan(served: Served, record: RescanRecord, policy: Policy) -> RescanOutcome:
    """Tell people and, where the policy says so, hold the release under way of a candidate with new findings. Never a rollback:
    whether the old version is the safer one is for a person to say."""
    outcome = RescanOutcome(served=served, record=record, document=record.content_digest())
    if record.result != "clean":
        event = FOUND if record.result == "findings" else UNSCANNED
        found = record.new or record.findings
        tell(
            event, served.model, served.environment, role=served.role, release=served.release,
            candidate=record.candidate, document=outcome.document, new=len(record.new),
            findings=[str(finding) for finding in found][:20], reasons=list(record.reasons)[:20],
        )  # fmt: skip
    if not record.new:
        return outcome
    logger.error("PAGE: %s: %s", outcome.as_text(), "; ".join(map(str, record.new[:3])))
    if not served.under_way or policy.rescan_findings != "hold":
        return outcome
    reason = f"re-scan found {len(record.new)} new: {'; '.join(map(str, record.new[:3]))}"
    try:
        deciding.hold(
            Workspace.current(), served.model, served.environment, reason=reason, requested_by=BY
        )
    except UsageError as error:
        # It ended, or is being emptied, meanwhile: there is no raise to hold any more.
        logger.warning("not held: %s", error.message)
        return outcome
    return outcome.model_copy(update={"held": True})


def _is_description(workspace: Workspace, runtime: ImageRef) -> bool:
    """Whether it is the embedded cluster's own: a lock file that was packed here, with nothing in it to scan."""
    try:
        read_runtime(workspace.store, runtime)
    except IntegrityError:
        return False
    return True


def last_rescan(workspace: Workspace, candidate: Digest) -> RescanRecord | None:
    """What the newest re-scan of a candidate found; None if there was none."""
    try:
        return recorded(workspace.records, _key(candidate), RescanRecord)
    except LockgateError as error:
        logger.warning("the re-scan of %s cannot be read: %s", candidate, error.message)
        return None


def _key(candidate: Digest) -> StepKey:
    return StepKey(step="rescan", version=RECORD_VERSION, inputs={"candidate": candidate})
