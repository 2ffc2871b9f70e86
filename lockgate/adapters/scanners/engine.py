"""What every weight scanner is: a name, the version that is installed, and a look at a model's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockgate.domain.evidence import Finding
from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.sources import Snapshot


@dataclass(frozen=True)
class ScanJob:
    """The files of `snapshot` in `directory`, which no scanner writes to, loads or runs."""

    directory: Path
    snapshot: Snapshot
    policy: WeightScanPolicy
    logs: Path
    """Where scanners that are processes leave their logs."""
    workers: int = 4
    """Files looked at, or processes run, at the same time."""


@dataclass(frozen=True)
class Look:
    """What a scanner saw. `failure`: why it could not look at everything; findings it made before that still count."""

    findings: tuple[Finding, ...] = ()
    detail: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Engine:
    """A weight scanner."""

    name: str
    version: Callable[[], str | None]
    """Of the scanner and of what decides its findings; None where it is not installed."""
    scan: Callable[[ScanJob], Look]
    """May raise `LockgateError` and `OSError`, as `Look.failure` without findings."""
