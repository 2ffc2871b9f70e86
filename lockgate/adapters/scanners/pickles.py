"""picklescan over every file that is or may be a pickle, by content as well as by name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lockgate.adapters.scanners.files import head_and_tail
from lockgate.adapters.scanners.worker import call_worker
from lockgate.domain.evidence import Finding, ScannerRun, ScannerStatus, Severity
from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning.content import Kind, sniff
from lockgate.domain.scanning.problems import quoted
from lockgate.domain.sources import Snapshot

NAME = "picklescan"
ENDINGS = (
    ".pkl", ".pickle", ".joblib", ".dat", ".data", ".pt", ".pth", ".bin", ".ckpt", ".npy", ".npz",
    ".zip", ".7z", ".p", ".dill", ".mar", ".model", ".pdparams", ".ot",
)  # fmt: skip
"""Files with these endings are scanned whatever their content looks like."""
_KINDS = frozenset({Kind.PICKLE, Kind.ZIP, Kind.NUMPY, Kind.ARCHIVE, Kind.OTHER})
_SEVERITIES = {"dangerous": Severity.CRITICAL, "suspicious": Severity.MEDIUM}


def scan(
    directory: Path, snapshot: Snapshot, policy: WeightScanPolicy, log_directory: Path
) -> tuple[ScannerRun, tuple[Finding, ...]]:
    """One process for all files; its crash, its time limit and a file that it cannot read make the run FAILED."""
    try:
        installed = version(NAME)
    except PackageNotFoundError:
        run = ScannerRun(name=NAME, version=None, status=ScannerStatus.NOT_INSTALLED)
        return run, ()
    wanted = [file.path for file in snapshot.files if _is_candidate(directory, file.path)]
    size = sum(file.size for file in snapshot.files if file.path in set(wanted))
    log = log_directory / "picklescan.log"
    answer = call_worker(
        "lockgate.adapters.scanners.pickle_worker",
        {"directory": str(directory.resolve()), "files": wanted},
        log=log,
        # Opcodes are walked in Python: some MB a second.
        timeout=120 + size / 1_000_000,
    )
    findings: list[Finding] = []
    scanned: set[str] = set()
    errors: list[str] = []
    for event in answer.events:
        if event["event"] == "error":
            errors.append(f"{quoted(event['path'])}: {event['detail']}")
        elif event["event"] == "file":
            scanned.add(event["path"])
            findings.extend(_findings(event))
    if not answer.finished:
        how = "took too long" if answer.ended.timed_out else f"status {answer.ended.code}"
        errors.append(f"the scanner process broke off ({how}), log: {log.name}")
    errors.extend(f"{quoted(p)} was not scanned" for p in wanted if p not in scanned and not errors)
    status = ScannerStatus.FAILED if errors else ScannerStatus.COMPLETED
    detail = (
        "; ".join(errors)[:500] or f"{len(wanted)} of {len(snapshot.files)} files may be pickles"
    )
    return ScannerRun(name=NAME, version=installed, status=status, detail=detail), tuple(findings)


def _is_candidate(directory: Path, path: str) -> bool:
    if path.casefold().endswith(ENDINGS):
        return True
    head, tail = head_and_tail(directory / path)
    return sniff(head, tail) in _KINDS


def _findings(event: dict[str, object]) -> list[Finding]:
    path = str(event["path"])
    findings = []
    globals_ = event["globals"]
    assert isinstance(globals_, list)
    for module, name, safety in globals_:
        severity = _SEVERITIES.get(safety)
        if severity is not None:
            message = f"a pickle that imports {quoted(f'{module}.{name}')} ({safety})"
            findings.append(_finding(path, "pickle-import", severity, message))
    if event["unreadable"]:
        message = f"a pickle or archive that cannot be read to its end: {event['unreadable']}"
        findings.append(_finding(path, "pickle-unreadable", Severity.HIGH, message))
    return findings


def _finding(path: str, rule: str, severity: Severity, message: str) -> Finding:
    return Finding(scanner=NAME, rule=rule, severity=severity, path=path, message=message[:500])
