"""picklescan over every file that is or may be a pickle, by content as well as by name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lockgate.adapters.scanners.engine import Engine, Look, ScanJob
from lockgate.adapters.scanners.files import head_and_tail
from lockgate.adapters.scanners.worker import call_worker
from lockgate.domain.evidence import Finding, Severity
from lockgate.domain.scanning.content import Kind, sniff
from lockgate.domain.scanning.problems import quoted
from lockgate.domain.sources import SnapshotFile

NAME = "picklescan"
ENDINGS = (
    ".pkl", ".pickle", ".joblib", ".dat", ".data", ".pt", ".pth", ".bin", ".ckpt", ".npy", ".npz",
    ".zip", ".7z", ".p", ".dill", ".mar", ".model", ".pdparams", ".ot",
)  # fmt: skip
"""Files with these endings are scanned whatever their content looks like."""
SHARED = 16 << 20
"""Bytes. Only for files larger than this is a further process worth its start."""
_KINDS = frozenset({Kind.PICKLE, Kind.ZIP, Kind.NUMPY, Kind.ARCHIVE, Kind.OTHER})
_SEVERITIES = {"dangerous": Severity.CRITICAL, "suspicious": Severity.MEDIUM}


def installed() -> str | None:
    try:
        return version(NAME)
    except PackageNotFoundError:
        return None


def scan(job: ScanJob) -> Look:
    """Processes side by side; the crash of one, its time limit and a file that it cannot read are failures."""
    wanted = [f for f in job.snapshot.files if _is_candidate(job.directory, f.path)]
    shares = _shares(wanted, job.workers)
    with ThreadPoolExecutor(max_workers=len(shares)) as pool:
        looks = list(
            pool.map(lambda item: _scan_share(job, item[0], item[1]), enumerate(shares, start=1))
        )
    findings = tuple(finding for found, _ in looks for finding in found)
    failure = "; ".join(error for _, errors in looks for error in errors)
    detail = f"{len(wanted)} of {len(job.snapshot.files)} files may be pickles"
    return Look(findings, detail, failure)


ENGINE = Engine(name=NAME, version=installed, scan=scan)


def _shares(files: Sequence[SnapshotFile], workers: int) -> list[list[SnapshotFile]]:
    """At least one share, so that a broken installation shows also where there is no file; the largest files apart."""
    count = max(1, min(workers, sum(file.size > SHARED for file in files)))
    shares: list[list[SnapshotFile]] = [[] for _ in range(count)]
    for file in sorted(files, key=lambda file: -file.size):
        min(shares, key=lambda share: sum(f.size for f in share)).append(file)
    return shares


def _scan_share(
    job: ScanJob, number: int, files: Sequence[SnapshotFile]
) -> tuple[list[Finding], list[str]]:
    log = job.logs / ("picklescan.log" if number == 1 else f"picklescan-{number}.log")
    wanted = [file.path for file in files]
    answer = call_worker(
        "lockgate.adapters.scanners.pickle_worker",
        {"directory": str(job.directory.resolve()), "files": wanted},
        log=log,
        # Opcodes are walked in Python: some MB a second.
        timeout=120 + sum(file.size for file in files) / 1_000_000,
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
    return findings, errors


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
