"""modelaudit over all files of a model, as the program it is: offline, without telemetry, limited in time and memory.

It reads pickles, archives, Keras, ONNX, GGUF and many more formats without loading them. What it takes from the environment
is taken away, and it is told in every way it knows to phone nobody.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from lockgate.adapters.scanners import structure
from lockgate.adapters.scanners.engine import Engine, Look, ScanJob
from lockgate.adapters.scanners.files import head_and_tail
from lockgate.adapters.scanners.worker import call_worker
from lockgate.domain.evidence import Finding, Severity
from lockgate.domain.scanning import model_config
from lockgate.domain.scanning.content import Kind, sniff
from lockgate.domain.scanning.modelaudit_report import COVERED, SCANNER, parse_report
from lockgate.domain.sources import SnapshotFile
from lockgate.errors import ScannerError

LARGE_TABLE = 256 << 10
MAX_REPORT = 256 << 20
BYTES_A_SECOND = 20_000_000
"""It hashes every file several times; this is a fifth of what one busy core manages."""


def installed() -> str | None:
    try:
        return version(SCANNER)
    except PackageNotFoundError:
        return None


def scan(job: ScanJob) -> Look:
    """Raises `ScannerError` when modelaudit breaks off, says that it failed, or writes what is no report."""
    root = str(job.directory.resolve())
    files = [file for file in job.snapshot.files if not _left_to_structure(job, file)]
    if not files:
        return Look(detail="no file for it")
    seconds = 1200 + int(sum(file.size for file in files) / BYTES_A_SECOND)
    log = job.logs / "modelaudit.log"
    with TemporaryDirectory(prefix="lockgate-modelaudit-") as scratch:
        place = Path(scratch, "report.json")
        answer = call_worker(
            "lockgate.adapters.scanners.modelaudit_worker",
            {
                "paths": [f"{root}/{file.path}" for file in files],
                "report": str(place),
                "scratch": scratch,
                "seconds": seconds,
            },
            log=log,
            timeout=seconds + 60,
        )
        if answer.ended.timed_out:
            raise ScannerError(f"modelaudit was stopped after {seconds + 60} s", log=log)
        # 0 nothing, 1 findings, 2 errors, or a file that could not be analysed: the report tells the two apart.
        if answer.ended.code not in (0, 1, 2) or not answer.ready:
            raise ScannerError(f"modelaudit ended with status {answer.ended.code}", log=log)
        if not place.is_file() or place.stat().st_size > MAX_REPORT:
            raise ScannerError("modelaudit wrote no report, or one that is too large", log=log)
        try:
            own = structure.NAME in job.policy.scanners
            report = parse_report(place.read_bytes(), root, COVERED if own else ())
        except ValueError as error:
            raise ScannerError(f"modelaudit's report cannot be read: {error}", log=log) from error
    if report.failed:
        why = "it scanned no file" if report.files == 0 else "it says that errors occurred"
        return Look(report.findings, failure="; ".join((why, *report.errors)))
    unexplained = _unexplained(answer.ended.code, report.findings)
    if unexplained:
        raise ScannerError(f"modelaudit's status and report disagree: {unexplained}", log=log)
    left = len(job.snapshot.files) - len(files)
    said = f"; {left} large tables of text left to {structure.NAME}" if left else ""
    return Look(report.findings, f"{report.files} files{said}")


def _left_to_structure(job: ScanJob, file: SnapshotFile) -> bool:
    """Vocabularies and shard indexes that are nothing but text: modelaudit takes ten seconds and more for a megabyte of them,
    and Lockgate's own checks, where the policy requires them, read them whole."""
    name = PurePosixPath(file.path).name
    table = name in model_config.VOCABULARIES or name.endswith(".index.json")
    if not table or file.size < LARGE_TABLE or structure.NAME not in job.policy.scanners:
        return False
    return sniff(*head_and_tail(job.directory / file.path)) is Kind.TEXT


ENGINE = Engine(name=SCANNER, version=installed, scan=scan)


def _unexplained(status: int, findings: tuple[Finding, ...]) -> str:
    serious = any(finding.severity is not Severity.LOW for finding in findings)
    unfinished = any(finding.rule == "modelaudit.inconclusive" for finding in findings)
    if status == 0 and (serious or unfinished):
        return "0, with findings"
    if status == 1 and not serious:
        return "1, without a finding"
    return "2, without a reason" if status == 2 and not unfinished else ""
