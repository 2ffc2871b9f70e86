"""Scanners of model files, images and manifests, behind one kind of evidence.

A new weight scanner is an `Engine` in `ENGINES`; its name may then stand in the policy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from lockgate.adapters.scanners import modelaudit, pickles, structure
from lockgate.adapters.scanners.engine import Engine, Look, ScanJob
from lockgate.adapters.scanners.files import said
from lockgate.adapters.scanners.worker import Progress
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus
from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.sources import Snapshot
from lockgate.errors import LockgateError

__all__ = ["ENGINES", "Progress", "engine_versions", "scan_weights"]

ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (structure.ENGINE, pickles.ENGINE, modelaudit.ENGINE)
}
_LOG = logging.getLogger("lockgate.scanners")


def engine_versions(policy: WeightScanPolicy) -> dict[str, str | None]:
    """The scanners that the policy names and the versions that are installed: what a scan's findings depend on besides."""
    return {name: ENGINES[name].version() if name in ENGINES else None for name in _named(policy)}


def scan_weights(
    directory: Path,
    snapshot: Snapshot,
    policy: WeightScanPolicy,
    *,
    log_directory: Path,
    progress: Progress | None = None,
    workers: int = 4,
) -> ScanEvidence:
    """Run every scanner the policy names over the files of `snapshot` in `directory`, side by side.

    Raises nothing for what it finds or for a scanner that breaks: both are in the evidence, and the gate judges it. No
    file is loaded, imported or run; logs of the scanners that are processes go to `log_directory`.
    """
    began = time.monotonic()
    job = ScanJob(directory, snapshot, policy, log_directory, workers)
    names = _named(policy)
    digests = {file.path: file.digest for file in snapshot.files}
    runs: list[ScannerRun] = []
    findings: list[Finding] = []
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        looks = [(name, pool.submit(_look, name, job)) for name in names]
        for number, (name, look) in enumerate(looks):
            if progress is not None:
                progress(number / len(names), f"scan: {name}")
            run, found = look.result()
            runs.append(run)
            findings.extend(_with_digest(finding, digests) for finding in found)
    if progress is not None:
        progress(1.0, "scan: done")
    return ScanEvidence(
        subject=snapshot.digest,
        subject_kind="weights",
        runs=tuple(runs),
        findings=tuple(findings),
        seconds=time.monotonic() - began,
        scanned_at=datetime.now(UTC),
    )


def _named(policy: WeightScanPolicy) -> Sequence[str]:
    return tuple(dict.fromkeys((*policy.scanners, *policy.optional_scanners)))


def _look(name: str, job: ScanJob) -> tuple[ScannerRun, tuple[Finding, ...]]:
    engine = ENGINES.get(name)
    if engine is None:
        detail = f"no such scanner; known: {', '.join(ENGINES)}"
        absent = ScannerStatus.NOT_INSTALLED
        return ScannerRun(name=name, version=None, status=absent, detail=detail), ()
    version = engine.version()
    if version is None:
        return ScannerRun(name=name, version=None, status=ScannerStatus.NOT_INSTALLED), ()
    try:
        look = engine.scan(job)
    except (LockgateError, OSError) as error:
        look = Look(failure=said(error))
    except (
        Exception
    ) as error:  # a scanner that crashes on a file is one that failed, whatever it raised
        _LOG.exception("scanner %s broke", name)
        look = Look(failure=f"it broke: {type(error).__name__}")
    run = ScannerRun(
        name=name,
        version=version,
        status=ScannerStatus.FAILED if look.failure else ScannerStatus.COMPLETED,
        detail=(look.failure or look.detail)[:500],
    )
    return run, look.findings


def _with_digest(finding: Finding, digests: dict[str, Digest]) -> Finding:
    digest = digests.get(finding.path)
    return finding.model_copy(update={"digest": digest}) if digest else finding
