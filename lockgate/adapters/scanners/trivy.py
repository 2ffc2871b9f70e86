"""trivy over image layouts and rendered manifests: never required to be there, never believed when it broke off.

trivy is taken from `LOCKGATE_TRIVY` or PATH, or run as a container (`lockgate.adapters.scanners.trivy_container`). It works
offline: a vulnerability database is used if its cache has one and never downloaded here. Where there is none, the evidence
holds a run `trivy-database` that was not done, and the gate treats it as it treats a missing trivy.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from lockgate.adapters.scanners.files import said
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ImageScanPolicy
from lockgate.domain.scanning.trivy_report import SCANNER, parse_report
from lockgate.domain.stores import IMAGE_INDEX, IMAGE_MANIFEST
from lockgate.errors import EnvironmentMissing, ScannerError
from lockgate.supervision import log_tail, run_program

FINDINGS_EXIT_CODE = 10
"""Asked of trivy for "something was found": its own errors are 1."""
DATABASE = "trivy-database"
MAX_REPORT = 256 << 20
MAX_METADATA = 16 << 20

_OFFLINE = ("--skip-db-update", "--skip-java-db-update", "--skip-check-update", "--offline-scan")
_ALL_SEVERITIES = "UNKNOWN,LOW,MEDIUM,HIGH,CRITICAL"


@dataclass(frozen=True)
class TrivyVersion:
    """`database` is when the vulnerability database in the cache was made; None where there is none."""

    version: str
    database: str | None

    @classmethod
    def parse(cls, text: str) -> TrivyVersion:
        """From `trivy version --format json`. Raises `ScannerError`."""
        try:
            data = read_json(text[text.find("{") :])
            database = data.get("VulnerabilityDB") or {}
            return cls(str(data["Version"]), database.get("UpdatedAt") or None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ScannerError("trivy does not say its version") from error


@dataclass(frozen=True)
class TrivyCall:
    """One invocation. `inputs` is read only; with `blobs`, that directory appears as `inputs/blobs`."""

    command: str
    """`image` or `config`."""
    arguments: tuple[str, ...]
    inputs: Path
    report: Path
    blobs: Path | None
    log: Path
    timeout: float


class Trivy(Protocol):
    """A trivy that can be run. Both methods raise `ScannerError`; `version` raises `EnvironmentMissing` if there is none."""

    def version(self, log: Path) -> TrivyVersion: ...

    def run(self, call: TrivyCall) -> int:
        """Exit status; the report is in `call.report`."""
        ...


class LocalTrivy:
    """The trivy program on this machine. `cache` is its cache directory; None for its own default."""

    def __init__(self, program: Path | None = None, cache: Path | None = None) -> None:
        self._program = program
        self._cache = cache

    def version(self, log: Path) -> TrivyVersion:
        lines: list[str] = []

        def take(line: str) -> bool:
            lines.append(line)
            return False

        command = self._command(["version", "--format", "json"])
        ended = run_program(command, log=log, timeout=60, on_line=take)
        if ended.code != 0 or ended.timed_out:
            raise ScannerError(f"trivy version ended with status {ended.code}", log=log)
        return TrivyVersion.parse("\n".join(lines))

    def run(self, call: TrivyCall) -> int:
        if call.blobs is not None:
            (call.inputs / "blobs").symlink_to(call.blobs.resolve())
        target = ["--input", str(call.inputs)] if call.command == "image" else [str(call.inputs)]
        ended = run_program(
            self._command([call.command, *call.arguments, "--output", str(call.report), *target]),
            log=call.log,
            timeout=call.timeout,
            # Not where a trivy.yaml or .trivyignore of somebody lies.
            directory=call.report.parent,
        )
        if ended.timed_out:
            raise ScannerError(f"trivy was stopped after {call.timeout:.0f} s", log=call.log)
        return ended.code

    def _command(self, arguments: Sequence[str]) -> list[str]:
        # A fresh environment: TRIVY_* variables could switch findings off.
        kept = {
            k: os.environ[k]
            for k in ("PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME")
            if k in os.environ
        }
        cache = self._cache or os.environ.get("TRIVY_CACHE_DIR")
        place = ["--cache-dir", str(cache)] if cache else []
        return [
            *("env", "-i", *(f"{name}={value}" for name, value in kept.items())),
            *(str(self._find()), *arguments, *place),
        ]

    def _find(self) -> Path:
        chosen = str(self._program) if self._program else os.environ.get("LOCKGATE_TRIVY")
        if chosen:
            found = shutil.which(chosen)
            if found is None:
                raise ScannerError("LOCKGATE_TRIVY does not name a program")
            return Path(found)
        found = shutil.which("trivy")
        if found is None:
            raise EnvironmentMissing("trivy is not on PATH, and LOCKGATE_TRIVY is not set")
        return Path(found)


def scan_image_layout(
    layout: Path,
    image: ImageRef | Digest,
    policy: ImageScanPolicy,
    *,
    log: Path,
    scanner: Trivy | None = None,
    timeout: float = 900.0,
) -> ScanEvidence:
    """Scan one image out of an OCI layout directory, which is not changed and may hold others."""
    digest = image.digest if isinstance(image, ImageRef) else image

    def prepare(inputs: Path) -> Path:
        _single_image_layout(layout, digest, inputs)
        return layout / "blobs"

    return _scan("image", digest, policy, prepare, log, scanner or LocalTrivy(), timeout)


def scan_manifests(
    directory: Path,
    policy: ImageScanPolicy,
    *,
    log: Path,
    subject: Digest | None = None,
    scanner: Trivy | None = None,
    timeout: float = 300.0,
) -> ScanEvidence:
    """Scan rendered Kubernetes manifests. `subject` names them; by default a digest over paths and contents."""
    files = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    contents = {name: Digest.of_bytes(path.read_bytes()) for name, path in files.items()}
    subject = subject or Digest.of_json(contents)

    def prepare(inputs: Path) -> None:
        for name, path in files.items():
            (inputs / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, inputs / name)

    return _scan("manifests", subject, policy, prepare, log, scanner or LocalTrivy(), timeout)


class _Prepare(Protocol):
    def __call__(self, inputs: Path) -> Path | None:
        """Fill `inputs`; returns the blobs directory that belongs under it, if any."""
        ...


def _scan(
    kind: str,
    subject: Digest,
    policy: ImageScanPolicy,
    prepare: _Prepare,
    log: Path,
    scanner: Trivy,
    timeout: float,
) -> ScanEvidence:
    began = time.monotonic()
    findings: tuple[Finding, ...] = ()
    try:
        known = scanner.version(log)
    except EnvironmentMissing as error:
        runs = [_run(None, ScannerStatus.NOT_INSTALLED, error.message)]
    except (ScannerError, OSError) as error:
        runs = [_run(None, ScannerStatus.FAILED, said(error))]
    else:
        try:
            findings, runs = _run_trivy(kind, policy, prepare, log, scanner, known, timeout)
        except (ScannerError, OSError, ValueError) as error:
            runs = [_run(known.version, ScannerStatus.FAILED, said(error))]
    return ScanEvidence(
        subject=subject,
        subject_kind=kind,
        runs=tuple(runs),
        findings=findings,
        seconds=time.monotonic() - began,
        scanned_at=datetime.now(UTC),
    )


def _run(version: str | None, status: ScannerStatus, detail: str) -> ScannerRun:
    return ScannerRun(name=SCANNER, version=version, status=status, detail=detail[:500])


def _run_trivy(
    kind: str,
    policy: ImageScanPolicy,
    prepare: _Prepare,
    log: Path,
    scanner: Trivy,
    known: TrivyVersion,
    timeout: float,
) -> tuple[tuple[Finding, ...], list[ScannerRun]]:
    wanted = list(policy.scanners) if kind == "image" else ["misconfig"]
    missing_database = "vuln" in wanted and known.database is None
    if missing_database:
        wanted.remove("vuln")
    runs: list[ScannerRun] = []
    findings: tuple[Finding, ...] = ()
    if wanted:
        findings, targets = _report(kind, wanted, prepare, log, scanner, timeout)
        if kind == "manifests" and not targets.get("kubernetes"):
            raise ScannerError("trivy recognised no Kubernetes manifest", log=log)
        runs.append(_run(known.version, ScannerStatus.COMPLETED, ", ".join(wanted)))
    else:
        runs.append(_run(known.version, ScannerStatus.NOT_INSTALLED, "nothing it could look for"))
    if missing_database:
        detail = "no vulnerability database in trivy's cache: known vulnerabilities NOT SCANNED"
        runs.append(
            ScannerRun(
                name=DATABASE, version=None, status=ScannerStatus.NOT_INSTALLED, detail=detail
            )
        )
    elif "vuln" in wanted:
        runs.append(
            ScannerRun(name=DATABASE, version=known.database, status=ScannerStatus.COMPLETED)
        )
    return findings, runs


def _report(
    kind: str,
    wanted: Sequence[str],
    prepare: _Prepare,
    log: Path,
    scanner: Trivy,
    timeout: float,
) -> tuple[tuple[Finding, ...], dict[str, int]]:
    command = "image" if kind == "image" else "config"
    arguments = [
        *("--format", "json", "--exit-code", str(FINDINGS_EXIT_CODE)),
        *("--severity", _ALL_SEVERITIES, "--timeout", f"{int(timeout)}s"),
    ]
    if command == "image":
        own = [s for s in wanted if s in ("misconfig", "secret")]
        arguments += [*_OFFLINE, "--no-progress", "--scanners", ",".join(wanted)]
        arguments += ["--image-config-scanners", ",".join(own)] if own else []
    else:
        arguments += ["--skip-check-update"]
    with TemporaryDirectory(prefix="lockgate-trivy-") as scratch:
        inputs, report = Path(scratch, "inputs"), Path(scratch, "report.json")
        inputs.mkdir()
        blobs = prepare(inputs)
        call = TrivyCall(command, tuple(arguments), inputs, report, blobs, log, timeout)
        status = scanner.run(call)
        if status not in (0, FINDINGS_EXIT_CODE):
            last = log_tail(log, 1)
            raise ScannerError(f"trivy ended with status {status}: {last[-300:]}", log=log)
        if not report.is_file() or report.stat().st_size > MAX_REPORT:
            raise ScannerError("trivy wrote no report, or one that is too large", log=log)
        parsed = parse_report(report.read_bytes())
    if (status == FINDINGS_EXIT_CODE) != bool(parsed.findings):
        raise ScannerError(
            f"trivy's status {status} and its report of {len(parsed.findings)} findings disagree",
            log=log,
        )
    return parsed.findings, parsed.targets


def _single_image_layout(layout: Path, digest: Digest, into: Path) -> None:
    """A layout of one image over the blobs of `layout`: which of several images trivy would take is not left to it."""
    path = layout / "blobs" / "sha256" / digest.hex
    try:
        size = path.stat().st_size
        if size > MAX_METADATA:
            raise ScannerError(f"the manifest {digest} has {size} bytes")
        body = path.read_bytes()
    except OSError as error:
        raise ScannerError(f"the layout does not hold {digest}: {error.strerror}") from error
    if Digest.of_bytes(body) != digest:
        raise ScannerError(f"the blob of manifest {digest} has other bytes")
    try:
        media_type = read_json(body).get("mediaType", IMAGE_MANIFEST)
    except (ValueError, AttributeError) as error:
        raise ScannerError(f"{digest} is not a manifest") from error
    descriptor = {"mediaType": media_type, "digest": str(digest), "size": size}
    index = {
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": [descriptor],
    }
    (into / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (into / "index.json").write_text(json.dumps(index))
