"""Scanners of model files, images and manifests, behind one kind of evidence.

A new weight scanner is a function like `structure.scan` and one entry in `_WEIGHT_SCANNERS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lockgate.adapters.scanners import pickles, structure
from lockgate.adapters.scanners.files import said
from lockgate.adapters.scanners.worker import Progress
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus
from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.sources import Snapshot
from lockgate.errors import LockgateError

__all__ = ["Progress", "scan_weights"]

_Scan = Callable[[Path, Snapshot, WeightScanPolicy, Path], tuple[ScannerRun, tuple[Finding, ...]]]
_WEIGHT_SCANNERS: dict[str, _Scan] = {
    "structure": structure.scan,
    "picklescan": pickles.scan,
}


def scan_weights(
    directory: Path,
    snapshot: Snapshot,
    policy: WeightScanPolicy,
    *,
    log_directory: Path,
    progress: Progress | None = None,
) -> ScanEvidence:
    """Run every scanner the policy names over the files of `snapshot` in `directory`.

    Raises nothing for what it finds or for a scanner that breaks: both are in the evidence, and the gate judges it. No
    file is loaded, imported or run; logs of the scanners that are processes go to `log_directory`.
    """
    began = time.monotonic()
    runs: list[ScannerRun] = []
    findings: list[Finding] = []
    names = tuple(dict.fromkeys(policy.scanners))
    for number, name in enumerate(names):
        if progress is not None:
            progress(number / len(names), f"scan: {name}")
        scan = _WEIGHT_SCANNERS.get(name)
        if scan is None:
            detail = f"no such scanner; known: {', '.join(_WEIGHT_SCANNERS)}"
            runs.append(
                ScannerRun(
                    name=name, version=None, status=ScannerStatus.NOT_INSTALLED, detail=detail
                )
            )
            continue
        try:
            run, found = scan(directory, snapshot, policy, log_directory)
        except (LockgateError, OSError) as error:
            run = ScannerRun(
                name=name, version=None, status=ScannerStatus.FAILED, detail=said(error)[:500]
            )
            found = ()
        runs.append(run)
        findings.extend(found)
    if progress is not None:
        progress(1.0, "scan: done")
    return ScanEvidence(
        subject=snapshot.digest,
        subject_kind="weights",
        runs=tuple(runs),
        findings=tuple(findings),
        seconds=time.monotonic() - began,
    )
