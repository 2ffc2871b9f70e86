"""The benchmark gate: is the candidate, on the same hardware, no slower than stable by more than the margin?

Each load profile is held against the absolute limits first. Then against stable: where both were measured in turn on the same
cores, by the pairs of blocks (`lockgate.domain.ratios.PairedRatio`); otherwise, and saying so, by two runs made apart, whose
interval knows nothing of the noise between runs. How many times longer are time to first token, time per output token and the
whole request, how many times lower is goodput where a service level is declared? The candidate passes if every upper bound is
within the metric's margin, fails if any lower bound is beyond it (level shared out), and is otherwise undecided. Results of
other hardware are never compared with each other, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lockgate.domain.cost import cost_of, saving
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    BlockFigures,
    BlockPair,
    ProfileResult,
)
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.ratios import FEWEST_REQUESTS, PairedRatio, Ratio, ratio_of
from lockgate.domain.spec import BenchmarkMetric, BenchmarkProfile, BenchmarkSpec

GATE = "benchmark"
ALPHA = 0.05
"""Chance that a candidate exactly at a margin passes, and that one within all margins fails."""


@dataclass(frozen=True)
class _Compared:
    name: BenchmarkMetric
    metric: str
    key: str
    statistic: Literal["p50", "mean"]


_COMPARED = (
    _Compared("ttft", "time to first token, median", "ttft_ms", "p50"),
    _Compared("tpot", "time per output token, median", "tpot_ms", "p50"),
    _Compared("e2e", "end to end, mean", "e2e_ms", "mean"),
)
_RATES: dict[BenchmarkMetric, str] = {
    "throughput": "output tokens per second",
    "goodput": "requests within the service level",
}
_UNITS: dict[BenchmarkMetric, str] = {"throughput": "tok/s", "goodput": "requests"}
"""Times are in milliseconds."""

_Judged = tuple[Decision, str, dict[str, Any] | None]


def benchmark_gate(
    spec: BenchmarkSpec,
    candidate: BenchmarkEvidence | None,
    stable: BenchmarkEvidence | None,
    comparison: BenchmarkComparison | None = None,
    *,
    apart: str = "candidate and stable were measured apart",
) -> GateResult:
    """Judge `candidate` by the absolute limits and against stable, by `comparison` where there is one.

    `stable` is its evidence from a run of its own; `apart` says why there is no comparison in turn. Where there is nothing to
    compare with, at least one absolute limit must be declared.
    """
    if candidate is None:
        return _result([(Decision.FAIL, "the candidate was not benchmarked", None)])
    judged: list[_Judged] = []
    if spec.compare == "limits":
        comparison = None
    reference = comparison.stable_benchmark if comparison is not None else stable
    comparable = (
        spec.compare == "in_turn"
        and reference is not None
        and reference.fingerprint.hardware == candidate.fingerprint.hardware
    )
    if comparison is not None:
        judged += _judge_provenance(candidate, stable, comparison)
    if not comparable:
        judged.append(_judge_alone(spec, candidate, reference))
    elif comparison is None:
        text = f"{apart}: the noise between the two runs is not in the intervals"
        judged.append((Decision.PASS, text, None))
    for profile in spec.profiles:
        own = _profile(candidate, profile.name)
        if own is None:
            judged.append((Decision.FAIL, f"{profile.name}: the candidate was not measured", None))
            continue
        judged += _judge_absolute(spec, profile, own)
        if profile.sweep is not None or not comparable:
            continue
        if comparison is not None:
            pairs = [pair for pair in comparison.pairs if pair.profile == profile.name]
            judged += _judge_in_turn(spec, profile, pairs)
        elif reference is not None:
            judged += _judge_apart(spec, own, _profile(reference, profile.name))
    return _result(judged, [_cost_row(spec, candidate, reference if comparable else None)])


def _judge_provenance(
    candidate: BenchmarkEvidence, stable: BenchmarkEvidence | None, comparison: BenchmarkComparison
) -> Iterator[_Judged]:
    """A comparison of others decides nothing."""
    other_stable = stable is not None and stable.subject != comparison.stable
    if comparison.candidate != candidate.subject or other_stable:
        text = "the comparison in turn is of other candidates: compare these two"
        yield Decision.INSUFFICIENT_DATA, text, None


def _judge_alone(
    spec: BenchmarkSpec, candidate: BenchmarkEvidence, stable: BenchmarkEvidence | None
) -> _Judged:
    if stable is None:
        why = "first release: judged by the absolute limits alone"
    elif spec.compare == "limits":
        why = "the spec asks for no comparison with stable: judged by the absolute limits alone"
    else:
        why = (
            f"stable was benchmarked on other hardware ({_hardware(stable)}) than the candidate "
            f"({_hardware(candidate)}): not compared, judged by the absolute limits alone"
        )
    if spec.limited:
        return Decision.PASS, why, None
    missing = "; none is declared, so there is nothing to judge by"
    return Decision.INSUFFICIENT_DATA, why + missing, None


def _judge_absolute(
    spec: BenchmarkSpec, profile: BenchmarkProfile, own: ProfileResult
) -> Iterator[_Judged]:
    if own.failed > spec.max_failed:
        text = f"{own.profile}: {own.failed} requests failed, {spec.max_failed} may"
        yield Decision.FAIL, text, None
    if own.completed + own.failed < profile.requests or own.completed == 0:
        text = f"{own.profile}: {own.completed} of {profile.requests} requests were answered"
        yield Decision.FAIL, text, None
    if profile.sweep is not None:
        return
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


def _judge_in_turn(
    spec: BenchmarkSpec, profile: BenchmarkProfile, pairs: Sequence[BlockPair]
) -> Iterator[_Judged]:
    if len(pairs) < spec.blocks:
        text = f"{profile.name}: {len(pairs)} of {spec.blocks} pairs of blocks were measured"
        yield Decision.INSUFFICIENT_DATA, text, None
        return
    for metric in _metrics(spec, profile):
        mine = [_slowness(metric, pair.candidate) for pair in pairs]
        theirs = [_slowness(metric, pair.stable) for pair in pairs]
        words = next((c.metric for c in _COMPARED if c.name == metric), _RATES.get(metric, metric))
        name = f"{profile.name}: {words}"
        row: dict[str, Any] = {
            "profile": profile.name,
            "metric": words,
            "candidate": _shown(metric, [pair.candidate for pair in pairs]),
            "stable": _shown(metric, [pair.stable for pair in pairs]),
            "unit": _UNITS.get(metric, "ms"),
            "margin": spec.margin_of(metric),
            "pairs": len(pairs),
        }
        if any(value is None for value in mine):
            yield Decision.FAIL, f"{name}: the candidate gave no figure in some blocks", row
        elif any(value is None for value in theirs):
            text = f"{name}: stable gave no figure in some blocks: compare them again"
            yield Decision.INSUFFICIENT_DATA, text, row
        else:
            logarithms = np.log(np.array(mine, float)) - np.log(np.array(theirs, float))
            yield _judge_ratio(name, spec, metric, PairedRatio(logarithms), row)


def _judge_apart(
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
            "margin": spec.margin_of(compared.name),
        }
        name = f"{own.profile}: {compared.metric}"
        if fewest < FEWEST_REQUESTS:
            text = (
                f"{name}: {fewest} requests are too few for runs made apart (at least {FEWEST_REQUESTS}, "
                "or measure both in turn)"
            )
            yield Decision.INSUFFICIENT_DATA, text, row
            continue
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all() and theirs.min() > 0):
            yield Decision.FAIL, f"{name}: a timing is not a positive number", row
            continue
        ratio = ratio_of(mine, theirs, compared.statistic)
        yield _judge_ratio(name, spec, compared.name, ratio, row)


def _judge_ratio(
    name: str,
    spec: BenchmarkSpec,
    metric: BenchmarkMetric,
    ratio: Ratio | PairedRatio,
    row: dict[str, Any],
) -> _Judged:
    level = ALPHA / sum(len(_metrics(spec, p)) for p in spec.profiles if p.sweep is None)
    lower, upper = ratio.lower(level), ratio.upper(ALPHA)
    allowed = 1 + spec.margin_of(metric)
    finite_upper = upper if math.isfinite(upper) else None
    row = {**row, "ratio": ratio.estimate, "lower": lower, "upper": finite_upper}
    unit = f" {_UNITS.get(metric, 'ms')}"
    said = (
        f"{name}: {row['candidate']:.1f}{unit} against stable's {row['stable']:.1f}{unit}, worse by a factor of "
        f"{ratio.estimate:.2f} ({lower:.2f} to {upper:.2f}), allowed {allowed:.2f}"
    )
    if upper <= allowed:
        return Decision.PASS, f"{said}: within the margin", row
    if lower > allowed:
        return Decision.FAIL, f"{said}: worse than the margin", row
    more = "more requests are needed"
    if isinstance(ratio, PairedRatio):
        needed = ratio.pairs_to_decide(allowed, ALPHA if ratio.estimate < allowed else level)
        row["pairs_to_decide"] = needed
        more = (
            "it lies at the margin itself, no number of blocks decides it"
            if needed is None
            else f"about {max(1, needed - ratio.pairs)} more pairs of blocks would decide"
        )
    return Decision.INSUFFICIENT_DATA, f"{said}: undecided, {more}", row


def _metrics(spec: BenchmarkSpec, profile: BenchmarkProfile) -> tuple[BenchmarkMetric, ...]:
    """What is compared under this load. Answers of one token have no time per further token."""
    names: list[BenchmarkMetric] = [compared.name for compared in _COMPARED]
    if profile.output_tokens == 1:
        names.remove("tpot")
    if spec.service_level is not None:
        names.append("goodput")
    if "throughput" in spec.margins:
        names.append("throughput")
    return tuple(names)


def _slowness(metric: BenchmarkMetric, figures: BlockFigures) -> float | None:
    """A figure that is positive and the larger the worse; None if there is none."""
    if metric == "goodput":
        if figures.kept_service_level is None:
            return None
        # Half a request more: a block in which none was within the level is a number too.
        asked = figures.completed + figures.failed
        return (asked + 1) / (figures.kept_service_level + 0.5)
    value = getattr(figures, metric)
    if value is None or value <= 0:
        return None
    return 1 / value if metric == "throughput" else float(value)


def _shown(metric: BenchmarkMetric, blocks: Sequence[BlockFigures]) -> float:
    """The figure over all blocks: the median of the blocks' latencies and rates, the sum of their good requests."""
    if metric == "goodput":
        return float(sum(block.kept_service_level or 0 for block in blocks))
    values = [value for block in blocks if (value := getattr(block, metric)) is not None]
    return float(np.median(values)) if values else 0.0


def _cost_row(
    spec: BenchmarkSpec, candidate: BenchmarkEvidence, stable: BenchmarkEvidence | None
) -> dict[str, Any]:
    def cost(evidence: BenchmarkEvidence) -> Any:
        return cost_of(
            evidence, service_level=spec.service_level, demand=spec.demand, prices=spec.prices
        )

    mine, theirs = cost(candidate), cost(stable) if stable is not None else None
    saved = saving(mine, theirs) if theirs is not None else None
    return {
        "cost": mine.to_data(),
        "stable_cost": theirs.to_data() if theirs is not None else None,
        "saving": saved.to_data() if saved is not None else None,
    }


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


def _result(judged: list[_Judged], more: Sequence[dict[str, Any]] = ()) -> GateResult:
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
    return GateResult(gate=GATE, decision=decision, reasons=reasons, measurements=(*rows, *more))
