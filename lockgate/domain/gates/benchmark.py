"""The benchmark gate: is the candidate, on the same hardware, no slower than stable by more than the margin?

Each load profile is held against the absolute limits first, then against stable's result for the same profile: how many
times longer are time to first token, time per output token and the whole request (which at a fixed concurrency is
throughput), with an exact interval over the single requests (`lockgate.domain.ratios`). The candidate passes if every upper
bound is within the margin, fails if any lower bound is beyond it (level shared out), and otherwise there were too few
requests. Results of other hardware are never compared with each other, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lockgate.domain.evidence import BenchmarkEvidence, ProfileResult
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.ratios import BATCHES, ratio_of
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec

GATE = "benchmark"
ALPHA = 0.05
"""Chance that a candidate exactly at the margin passes (noise within a run; see the calibration page for noise between)."""


@dataclass(frozen=True)
class _Compared:
    metric: str
    key: str
    statistic: Literal["p50", "mean"]


_COMPARED = (
    _Compared("time to first token, median", "ttft_ms", "p50"),
    _Compared("time per output token, median", "tpot_ms", "p50"),
    _Compared("end to end, mean", "e2e_ms", "mean"),
)

_Judged = tuple[Decision, str, dict[str, Any] | None]


def benchmark_gate(
    spec: BenchmarkSpec,
    candidate: BenchmarkEvidence | None,
    stable: BenchmarkEvidence | None,
) -> GateResult:
    """Judge `candidate` by the absolute limits and, where there is a `stable` of the same hardware, against it.

    Where there is nothing to compare with, at least one absolute limit must be declared.
    """
    if candidate is None:
        return _result([(Decision.FAIL, "the candidate was not benchmarked", None)])
    judged: list[_Judged] = []
    comparable = stable is not None and (
        stable.fingerprint.hardware == candidate.fingerprint.hardware
    )
    if not comparable:
        if stable is None:
            why = "first release: judged by the absolute limits alone"
        else:
            why = (
                f"stable was benchmarked on other hardware ({_hardware(stable)}) than the candidate "
                f"({_hardware(candidate)}): not compared, judged by the absolute limits alone"
            )
        limited = any(limit is not None for _, limit, _, _ in _limits(spec))
        missing = "; none is declared, so there is nothing to judge by"
        verdict = Decision.PASS if limited else Decision.INSUFFICIENT_DATA
        judged.append((verdict, why if limited else why + missing, None))
    for profile in spec.profiles:
        own = _profile(candidate, profile.name)
        if own is None:
            judged.append((Decision.FAIL, f"{profile.name}: the candidate was not measured", None))
            continue
        judged += _judge_absolute(spec, profile, own)
        if stable is not None and comparable:
            judged += _judge_relative(spec, own, _profile(stable, profile.name))
    return _result(judged)


def _judge_absolute(
    spec: BenchmarkSpec, profile: BenchmarkProfile, own: ProfileResult
) -> Iterator[_Judged]:
    if own.failed > spec.max_failed:
        text = f"{own.profile}: {own.failed} requests failed, {spec.max_failed} may"
        yield Decision.FAIL, text, None
    if own.completed + own.failed < profile.requests or own.completed == 0:
        text = f"{own.profile}: {own.completed} of {profile.requests} requests were answered"
        yield Decision.FAIL, text, None
    for metric, limit, key, sign in _limits(spec):
        if limit is None:
            continue
        value = own.output_tokens_per_second if key is None else getattr(own, key).get("p50")
        row = {"profile": own.profile, "metric": metric, "candidate": value, "limit": limit}
        if value is None or not math.isfinite(value):
            yield Decision.FAIL, f"{own.profile}: {metric} was not measured", row
        elif sign * value > sign * limit:
            yield Decision.FAIL, f"{own.profile}: {metric} {value:.1f}, limit {limit:.1f}", row
        else:
            text = f"{own.profile}: {metric} {value:.1f} is within the limit {limit:.1f}"
            yield Decision.PASS, text, row


def _judge_relative(
    spec: BenchmarkSpec, own: ProfileResult, reference: ProfileResult | None
) -> Iterator[_Judged]:
    if reference is None:
        text = f"{own.profile}: stable was not measured under this load: benchmark it again"
        yield Decision.INSUFFICIENT_DATA, text, None
        return
    for compared in _COMPARED:
        mine = np.array(own.requests.get(compared.key, ()), dtype=np.float64)
        theirs = np.array(reference.requests.get(compared.key, ()), dtype=np.float64)
        fewest = min(mine.size, theirs.size)
        row: dict[str, Any] = {
            "profile": own.profile,
            "metric": compared.metric,
            "candidate": getattr(own, compared.key).get(compared.statistic),
            "stable": getattr(reference, compared.key).get(compared.statistic),
            "margin": spec.margin,
        }
        name = f"{own.profile}: {compared.metric}"
        if fewest < BATCHES:
            text = f"{name}: {fewest} requests are too few (at least {BATCHES})"
            yield Decision.INSUFFICIENT_DATA, text, row
            continue
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all() and theirs.min() > 0):
            yield Decision.FAIL, f"{name}: a timing is not a positive number", row
            continue
        yield _judge_ratio(name, spec, compared, mine, theirs, row)


def _judge_ratio(
    name: str,
    spec: BenchmarkSpec,
    compared: _Compared,
    mine: NDArray[np.float64],
    theirs: NDArray[np.float64],
    row: dict[str, Any],
) -> _Judged:
    ratio = ratio_of(mine, theirs, compared.statistic)
    tests = len(_COMPARED) * len(spec.profiles)
    lower, upper = ratio.lower(ALPHA / tests), ratio.upper(ALPHA)
    allowed = 1 + spec.margin
    finite_upper = upper if math.isfinite(upper) else None
    row = {**row, "ratio": ratio.estimate, "lower": lower, "upper": finite_upper}
    said = (
        f"{name}: {row['candidate']:.1f} ms against stable's {row['stable']:.1f} ms, "
        f"ratio {ratio.estimate:.2f} ({lower:.2f} to {upper:.2f}), allowed {allowed:.2f}"
    )
    if upper <= allowed:
        return Decision.PASS, f"{said}: within the margin", row
    if lower > allowed:
        return Decision.FAIL, f"{said}: slower than the margin", row
    return Decision.INSUFFICIENT_DATA, f"{said}: undecided, more requests are needed", row


def _limits(spec: BenchmarkSpec) -> Sequence[tuple[str, float | None, str | None, int]]:
    """Name, limit, where it is in the profile's result (None: throughput), and 1 if more is worse."""
    return (
        ("median time to first token (ms)", spec.max_ttft_p50_ms, "ttft_ms", 1),
        ("median time per output token (ms)", spec.max_tpot_p50_ms, "tpot_ms", 1),
        ("output tokens per second", spec.min_output_tokens_per_second, None, -1),
    )


def _profile(evidence: BenchmarkEvidence, name: str) -> ProfileResult | None:
    return next((p for p in evidence.profiles if p.profile == name), None)


def _hardware(evidence: BenchmarkEvidence) -> str:
    mark = evidence.fingerprint
    return f"{mark.gpu or mark.cpu}, {mark.cores} cores, {mark.hardware.short}"


def _result(judged: list[_Judged]) -> GateResult:
    decisions = [decision for decision, _, _ in judged]
    if Decision.FAIL in decisions:
        decision = Decision.FAIL
    elif Decision.INSUFFICIENT_DATA in decisions or not decisions:
        decision = Decision.INSUFFICIENT_DATA
    else:
        decision = Decision.PASS
    rows = tuple({**row, "decision": str(d)} for d, _, row in judged if row is not None)
    order = [Decision.FAIL, Decision.INSUFFICIENT_DATA, Decision.PASS]
    reasons = tuple(text for _, text, _ in sorted(judged, key=lambda j: order.index(j[0])))
    return GateResult(gate=GATE, decision=decision, reasons=reasons, measurements=rows)
