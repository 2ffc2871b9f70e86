"""Why a release ended, or stands, as it does: what was decided, on what evidence, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import Decision, GateReport, GateResult
from lockgate.domain.judge import JudgeReport, Verdict
from lockgate.errors import EXIT_FAILURE, EXIT_REFUSED

Result = Literal["promoted", "rolled_back", "aborted", "refused", "failed", "under_way", "waiting"]


class Refusal(Frozen):
    """One gate, or the judge, that did not let the candidate through."""

    by: str
    """`scan`, `evaluation`, `benchmark`, `judge`."""
    decision: str
    reasons: tuple[str, ...]
    figures: tuple[dict[str, Any], ...] = ()
    """What was measured of that which did not pass: estimate, interval, margin."""


class EvidenceDigest(Frozen):
    """A document that the decision rests on."""

    kind: str
    digest: Digest


class StepLog(Frozen):
    """A log of one step, on this machine."""

    step: str
    path: str
    bytes: int
    shared: bool = False
    """Whether later work writes into the same file: the newest lines may be another release's."""


class Explanation(Frozen):
    """What became of one release, and why."""

    release: str
    model: str
    environment: str
    candidate: Digest | None = None
    """None where it failed before there was one."""
    result: Result
    reason: str
    step: str | None = None
    """In which a release that failed did so."""
    requested_by: str | None = None
    refusals: tuple[Refusal, ...] = ()
    evidence: tuple[EvidenceDigest, ...] = ()
    logs: tuple[StepLog, ...] = ()
    next_steps: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """As the release's own."""
        if self.result in ("refused", "rolled_back", "aborted"):
            return EXIT_REFUSED
        return EXIT_FAILURE if self.result == "failed" else 0


def refusals_of(report: GateReport) -> tuple[Refusal, ...]:
    """The gates that did not pass, those that gave no result included."""
    missing = [
        Refusal(
            by=name, decision="no result", reasons=("it was not asked: an earlier one refused",)
        )
        for name in report.required
        if not any(result.gate == name for result in report.results)
    ]
    refused = [_refusal(r) for r in report.results if r.decision is not Decision.PASS]
    return (*refused, *missing)


def refusal_by_judge(report: JudgeReport) -> Refusal:
    """The judge's word, with the metrics that did not pass."""
    figures = tuple(
        {
            "metric": metric.name, "decision": metric.verdict.value, "estimate": metric.estimate,
            "lower": metric.interval[0] if metric.interval else None,
            "upper": metric.interval[1] if metric.interval else None,
            "margin": metric.margin, "reason": metric.reason,
        }
        for metric in report.metrics
        if metric.verdict is not Verdict.PASS
    )  # fmt: skip
    reasons = report.reasons or ("the report names no reason",)
    return Refusal(by="judge", decision=report.verdict.value, reasons=reasons, figures=figures)


def after_refusal(refusals: Sequence[Refusal], against: str | None, release: str) -> list[str]:
    """What can be tried. `against`: the release that was stable, to be compared with."""
    steps: list[str] = []
    for refusal in refusals:
        match refusal.by:
            case "scan":
                steps += _after_scan(refusal)
            case "evaluation":
                steps += _after_evaluation(refusal)
            case "benchmark":
                steps += _after_benchmark(refusal)
    asked = [r.by for r in refusals if r.decision != "no result"]
    if against is not None and {"evaluation", "benchmark", "judge"} & set(asked):
        steps.append(f"`lockgate diff {against} {release}`: what changed against stable")
    return list(dict.fromkeys(steps))


def _refusal(result: GateResult) -> Refusal:
    rows = tuple(
        dict(row)
        for row in result.measurements
        if row.get("decision") not in (None, str(Decision.PASS))
    )
    return Refusal(
        by=result.gate, decision=result.decision.value, reasons=result.reasons, figures=rows
    )


def _after_scan(refusal: Refusal) -> Iterable[str]:
    text = " ".join(refusal.reasons)
    if "did not run" in text or "not installed" in text or "not there" in text:
        yield "install the scanner that is missing, or make it optional in policy.yaml; then release again"
    if " failed" in text:
        yield "read the scanner's log (`lockgate logs … --step scan`); a scan that failed is never a pass"
    if "[" in text:
        yield (
            "release other weights; where the finding was looked at and is accepted, whoever answers for policy.yaml "
            "adds a waiver for its rule and file (docs/scanning.md)"
        )


def _after_evaluation(refusal: Refusal) -> Iterable[str]:
    needed = _largest(refusal.figures, "items_needed")
    if refusal.decision == Decision.FAIL:
        yield "a recipe that loses less (docs/quantization.md), or the fine-tune itself: the answers are in the report"
    elif needed is not None:
        yield f"`evaluation.limit` of at least {needed}: so many items would decide"
    else:
        yield "read the reasons: what is missing has to be measured before anything is decided"


def _after_benchmark(refusal: Refusal) -> Iterable[str]:
    pairs = _largest(refusal.figures, "pairs_to_decide")
    if refusal.decision == Decision.FAIL:
        yield "another recipe or other `serving` arguments; a load that was not meant is changed in `benchmark.profiles`"
    elif pairs is not None:
        yield f"`benchmark.blocks` of at least {pairs}: so many pairs would decide"
    else:
        yield "measure on the hardware of stable's benchmark, with as much load (docs/offline-gates.md)"


def _largest(rows: Sequence[Mapping[str, Any]], key: str) -> int | None:
    found = [int(row[key]) for row in rows if row.get(key) is not None]
    return max(found, default=None)
