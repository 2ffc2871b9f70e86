"""What was found out about a snapshot or a candidate before it may meet traffic.

Evidence is measured by steps that hold no signing key, judged by `lockgate.domain.gates`, and signed as the predicate of a
`lockgate.dev/gate/v1` attestation. Every item names its subject by digest.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest


class Severity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class ScannerStatus(StrEnum):
    COMPLETED = "completed"
    NOT_INSTALLED = "not-installed"
    FAILED = "failed"


class ScannerRun(Frozen):
    """One scanner's work. Only `completed` counts as scanned."""

    name: str
    version: str | None
    status: ScannerStatus
    detail: str = ""


class Finding(Frozen):
    scanner: str
    rule: str
    severity: Severity
    path: str
    """File in the snapshot, or package in an image."""
    message: str
    digest: Digest | None = None
    """Of the file's bytes, where the finding is about one file of a snapshot. Waivers name it."""


class ScanEvidence(Frozen):
    """Scans of one subject (a snapshot's digest, or an image's)."""

    subject: Digest
    subject_kind: str
    """`weights`, `image`, `manifests`, or `source`: what the source itself says about these files."""
    runs: tuple[ScannerRun, ...]
    findings: tuple[Finding, ...]
    seconds: float
    scanned_at: AwareDatetime | None = None
    """When the scan ended. Evidence without it is of unknown age and does not pass."""


class ItemScore(Frozen):
    """One evaluation item: the same `item` in two evidences is the same question."""

    item: str
    score: float
    cluster: str | None = None
    """Document that several items are about, where the task declares one: their scores rise and fall together."""


class TaskScore(Frozen):
    task: str
    metric: str
    score: float
    items: tuple[ItemScore, ...]


class Fingerprint(Frozen):
    """Where a measurement was made. Benchmarks with different `hardware` are never compared."""

    hardware: Digest
    cpu: str
    cores: int
    gpu: str | None = None
    engine: str
    engine_version: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    """Of the engine, as its spec and its placement set it."""
    machine_cores: int | None = None
    memory_bytes: int | None = None
    kernel: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Of Python and of the packages that decide an engine's speed."""
    exclusive_cores: bool | None = None
    """Whether no other server of Lockgate's ran on the same cores when this one started."""


class EvaluationEvidence(Frozen):
    subject: Digest
    """Candidate digest."""
    suite: Digest
    """Digest over the task files and data: scores of different suites are never compared."""
    harness: str
    """Name and version of the evaluation harness."""
    tasks: tuple[TaskScore, ...]
    seconds: float
    samples: Digest | None = None
    """Every question with its answer, as the document of this digest in the store: one JSON object an item."""


class LoadPoint(Frozen):
    """What one level of load gave: a point of a curve."""

    level: float
    unit: Literal["concurrency", "rate"]
    """Requests in flight, or arrivals a second."""
    completed: int
    failed: int
    requests_per_second: float
    output_tokens_per_second: float
    prompt_tokens_per_second: float
    ttft_ms: dict[str, float]
    """Keys `mean`, `p50`, `p90`, `p99`, as in a profile's result."""
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    kept_service_level: int | None = None
    """Requests that kept the declared service level."""
    goodput_per_second: float | None = None


class ProfileResult(Frozen):
    """One load profile's result; latencies in milliseconds. Of a sweep: the level with the highest throughput.

    In an open loop a latency counts from the time at which the request was due, not from when it was sent.
    """

    profile: str
    completed: int
    failed: int
    duration_seconds: float
    output_tokens_per_second: float
    requests_per_second: float
    ttft_ms: dict[str, float]
    """Keys `mean`, `p50`, `p90`, `p99`."""
    tpot_ms: dict[str, float]
    itl_ms: dict[str, float]
    e2e_ms: dict[str, float]
    requests: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Single requests in the order sent, for intervals: `ttft_ms`, `tpot_ms` (mean of a request), `itl_max_ms`, `e2e_ms`."""
    prompt_tokens_per_second: float | None = None
    kept_service_level: int | None = None
    """Requests that kept the declared service level."""
    goodput_per_second: float | None = None
    """Requests a second that kept it."""
    send_lag_p99_ms: float | None = None
    """Open loop: how late the generator sent, which is counted into the latencies."""
    curve: tuple[LoadPoint, ...] = ()
    """Of a sweep: its levels, in the order sent."""


class BenchmarkEvidence(Frozen):
    subject: Digest
    """Candidate digest."""
    generator: str
    """Name and version of the load generator."""
    fingerprint: Fingerprint
    profiles: tuple[ProfileResult, ...]
    seconds: float


class BlockFigures(Frozen):
    """One side of a pair of blocks. Times in milliseconds."""

    completed: int
    failed: int
    ttft: float | None
    """Median time to first token."""
    tpot: float | None
    """Median over the requests of the time per output token."""
    e2e: float | None
    """Mean time of a whole request."""
    throughput: float
    """Output tokens a second."""
    kept_service_level: int | None = None


class BlockPair(Frozen):
    """The same load put to both, one right after the other."""

    profile: str
    candidate_first: bool
    candidate: BlockFigures
    stable: BlockFigures


class BenchmarkComparison(Frozen):
    """Candidate and stable measured in turn on the same cores of one machine."""

    candidate: Digest
    stable: Digest
    generator: str
    fingerprint: Fingerprint
    """Of the candidate's server."""
    stable_benchmark: BenchmarkEvidence
    """Stable's blocks of this run, taken together."""
    pairs: tuple[BlockPair, ...]
    seconds: float
