"""From evidence to verdicts: which metric fails, what a pass needs, and why, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lockgate.domain.judge.config import (
    TIMED,
    Criticality,
    JudgeConfig,
    MetricConfig,
    MetricKind,
    PassRule,
)
from lockgate.domain.judge.evaluators import Evaluator
from lockgate.domain.judge.health import HealthWatch, Incident
from lockgate.domain.judge.load import Load, load_of
from lockgate.domain.judge.panel import Panel
from lockgate.domain.judge.report import JudgeReport, MetricVerdict, Verdict
from lockgate.domain.trace import TRACKS, Track

_MAX_LOG = 700.0


def _e_value(log_value: float) -> float:
    return math.exp(min(log_value, _MAX_LOG))


@dataclass(frozen=True)
class Standing:
    """All that a decision is made of, at one moment of trace time."""

    config: JudgeConfig
    now: float
    start: float
    blocks: int
    panel: Panel
    alpha: Mapping[str, float]
    health: HealthWatch
    finished: Mapping[Track, float]
    arrivals: Mapping[Track, float]
    served: Mapping[Track, float]
    """Seconds that engine instances were up, summed over instances, over the same stretches."""
    failed: tuple[str, ...] = ()
    """Metrics that were found worse, alone or together."""

    @property
    def evaluators(self) -> Mapping[str, Evaluator]:
        return self.panel.evaluators

    @property
    def elapsed(self) -> float:
        return self.now - self.start

    @property
    def canary_requests(self) -> float:
        """Requests that the canary finished (as its engine says, else as the gateway says)."""
        if self.finished["baseline"] > 0:
            return self.finished["canary"]
        return self.finished["canary"] or self.arrivals["canary"]

    @cached_property
    def load(self) -> Load:
        """What a replica of each track carries."""
        return load_of(self.config, self.arrivals, self.finished, self.served)


@dataclass(frozen=True)
class Decision:
    """What has been decided so far. A fail stays; a pass stays unless a fail comes."""

    fail_at: float | None = None
    fail_reasons: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    pass_at: float | None = None

    def report(self, standing: Standing, *, quantiles: bool = False) -> JudgeReport:
        """The whole answer at the moment of `standing`. With the bands of quantiles where `quantiles`, and where it is an
        answer to rest on."""
        standing = replace(standing, failed=self.failed)
        metrics = tuple(metric_verdicts(standing))
        verdict, reasons = _whole(standing, self, metrics)
        decided = {Verdict.FAIL: self.fail_at, Verdict.PASS: self.pass_at}.get(verdict)
        if quantiles or verdict.decisive or standing.elapsed > standing.config.time_budget_s:
            metrics = tuple(_with_quantiles(standing, metric) for metric in metrics)
        return JudgeReport(
            verdict=verdict,
            decided_at=decided,
            time=standing.now,
            looks=standing.blocks,
            reasons=reasons,
            futile=not verdict.decisive and standing.elapsed > standing.config.time_budget_s,
            metrics=metrics,
        )


def _with_quantiles(standing: Standing, metric: MetricVerdict) -> MetricVerdict:
    evaluator = standing.evaluators.get(metric.name)
    try:
        bands = evaluator.quantiles() if evaluator is not None else ()
    except (ArithmeticError, LookupError, ValueError):
        return metric  # nothing is decided by them: a report without them is better than none
    return metric.model_copy(update={"quantiles": bands}) if bands else metric


def decide(standing: Standing, before: Decision) -> Decision:
    """The decision after this moment. Pure; called at every block and at every incident."""
    if before.fail_at is not None:
        return before
    together = _worse_together(standing)
    if not together and not _may_fail(standing) and not _may_pass(standing):
        return before
    standing = replace(standing, failed=together)
    found = metric_verdicts(standing, display=bool(together))
    failed = tuple(f"{m.name}: {m.reason}" for m in found if _fails_whole(standing, m))
    if failed:
        names = tuple(m.name for m in found if _fails_whole(standing, m))
        return replace(before, fail_at=standing.now, fail_reasons=failed, failed=names)
    in_budget = standing.elapsed <= standing.config.time_budget_s + standing.config.block_s
    if before.pass_at is None and in_budget and not obstacles(standing, found):
        return replace(before, pass_at=standing.now)
    return before


def _may_fail(standing: Standing) -> bool:
    """Whether a crash or one metric's evidence could fail the canary; cheap, and never wrongly no."""
    return bool(standing.health.of("canary", standing.start)) or any(
        standing.evaluators[name].evidence.log_worse >= -math.log(alpha)
        for name, alpha in standing.alpha.items()
    )


def _may_pass(standing: Standing) -> bool:
    """Whether time, requests and the required metrics' evidence allow a pass; as cheap."""
    config = standing.config
    if standing.elapsed < config.hold_s or standing.canary_requests < config.minimum_requests:
        return False
    return config.pass_rule is PassRule.NO_HARM or all(
        e.evidence.log_within_now >= -math.log(config.beta)
        for e in standing.evaluators.values()
        if e.metric.criticality is Criticality.REQUIRED
    )


def _worse_together(standing: Standing) -> tuple[str, ...]:
    """The metrics whose evidence, added up with their shares of alpha as weights, is enough to fail
    the canary; empty where it is not. A weighted sum of e-processes is an e-process, and is never
    less than what one metric alone would have to reach: metrics that move together need less."""
    parts: dict[str, float] = {}
    for name, alpha in standing.alpha.items():
        evaluator = standing.evaluators[name]
        if evaluator.metric.kind in TIMED and standing.load.excuses:
            continue
        parts[name] = alpha * _e_value(evaluator.evidence.log_worse_now)
    total = sum(parts.values())
    return tuple(n for n, part in parts.items() if part >= total / 3) if total >= 1 else ()


def _fails_whole(standing: Standing, metric: MetricVerdict) -> bool:
    return (
        metric.verdict is Verdict.FAIL
        and standing.config.metrics[metric.name].criticality is not Criticality.ADVISORY
    )


def metric_verdicts(standing: Standing, *, display: bool = True) -> list[MetricVerdict]:
    """Each metric's verdict. `display` false leaves out estimates and intervals (cheaper)."""
    if display:
        standing.panel.describe()
    out: list[MetricVerdict] = []
    for name, metric in standing.config.metrics.items():
        if metric.kind is MetricKind.CRASH:
            out.append(_crashes(standing, name))
        elif name in standing.evaluators:
            out.append(_judged(standing, standing.evaluators[name]))
        elif display:
            why = (
                "not judged in this step: latencies are not compared at unequal load"
                if metric.kind in TIMED
                else "not judged: no committed weight was given"
            )
            out.append(_blank(name, metric, why))
    return out


def _blank(name: str, metric: MetricConfig, reason: str) -> MetricVerdict:
    return MetricVerdict(
        name=name,
        verdict=Verdict.INSUFFICIENT_DATA,
        margin=metric.margin,
        criticality=metric.criticality.value,
        reason=reason,
    )


def _crashes(standing: Standing, name: str) -> MetricVerdict:
    metric = standing.config.metrics[name]
    found = {t: standing.health.of(t, standing.start) for t in TRACKS}
    n_canary, n_baseline = len(found["canary"]), len(found["baseline"])
    # A baseline that goes down at the same moment may be told of a line later: what takes both is nobody's.
    began = found["canary"][-1].since if found["canary"] else standing.now
    n_baseline += standing.health.going_down("baseline", began)
    if n_canary > n_baseline or _dead(standing, found["canary"]):
        verdict, reason = Verdict.FAIL, "; ".join(i.what for i in found["canary"])
    elif n_canary:
        verdict = Verdict.INSUFFICIENT_DATA
        reason = f"both tracks had incidents ({n_baseline} baseline, {n_canary} canary)"
    elif "canary" not in standing.health.last_usable:
        verdict, reason = Verdict.INSUFFICIENT_DATA, "the canary has not been scraped yet"
    else:
        verdict, reason = Verdict.PASS, "no crash, restart or stall of the canary"
    return MetricVerdict(
        name=name,
        verdict=verdict,
        estimate=float(n_canary - n_baseline),
        n_baseline=n_baseline,
        n_canary=n_canary,
        margin=metric.margin,
        criticality=metric.criticality.value,
        reason=reason,
    )


def _dead(standing: Standing, incidents: Sequence[Incident]) -> bool:
    """Whether the canary alone has been down for long, whatever happened to the baseline before."""
    health = standing.health
    if not incidents or not health.all_down("canary") or health.all_down("baseline"):
        return False
    return standing.now - incidents[-1].time > standing.config.stall_after_s


def _percent(metric: MetricConfig, value: float | None) -> str:
    if value is None:
        return "?"
    if metric.kind in (MetricKind.LATENCY, MetricKind.SIZE):
        return f"{value:+.1%}" if abs(value) < 3 else f"{1 + value:.1f}-fold"
    return f"{100 * value:+.2f} points"


def _range(metric: MetricConfig, interval: tuple[float | None, float | None] | None) -> str:
    if interval is None:
        return ""
    return f" (interval {_percent(metric, interval[0])} to {_percent(metric, interval[1])})"


def _stale(standing: Standing, evaluator: Evaluator) -> str | None:
    """Why the metric's samples count as lost, or None."""
    lost = [
        f"{track} for {standing.now - seen:.0f} s"
        for track, seen in evaluator.last_seen.items()
        if standing.now - seen > standing.config.outage_after_s
    ]
    return f"samples that were there are missing: {', '.join(lost)}" if lost else None


def _judged(standing: Standing, evaluator: Evaluator) -> MetricVerdict:
    metric, config, evidence = evaluator.metric, standing.config, evaluator.evidence
    alpha = standing.alpha.get(evaluator.name)
    if metric.criticality is Criticality.ADVISORY:
        alpha = config.alpha
    threshold = None if alpha is None else 1.0 / alpha
    alone = threshold is not None and evidence.log_worse >= math.log(threshold)
    worse = alone or evaluator.name in standing.failed
    within = evidence.log_within_now >= -math.log(config.beta)
    enough = min(evidence.n_baseline, evidence.n_canary) >= metric.minimum_samples
    change = _percent(metric, evidence.estimate) + _range(metric, evidence.interval)
    if evidence.detail:
        change += f"; {evidence.detail}"
    margin = _percent(metric, metric.margin)
    verdict = Verdict.INSUFFICIENT_DATA
    load = standing.load if metric.kind in TIMED else None
    lost = _stale(standing, evaluator)
    if not evaluator.present:
        reason = "the trace has no such samples"
    elif worse and not (load and load.excuses):
        verdict = Verdict.FAIL
        with_others = "" if alone else ", by the evidence of all metrics together"
        reason = f"worse than the margin of {margin}{with_others}: {change}"
    elif load and (load.surely_heavier or load.surely_lighter):
        reason = (
            f"not like with like: a canary replica carries {load.ratio:.2f} times the load of a "
            f"baseline replica; change {change}"
        )
    elif worse:
        reason = (
            f"worse than the margin of {margin}, and held back: no committed weight says that a canary replica carries no "
            f"more than a baseline replica, and so few requests do not show it; change {change}"
        )
    elif lost:
        verdict, reason = Verdict.METRICS_OUTAGE, lost
    elif metric.kind is MetricKind.SPLIT:
        verdict = Verdict.PASS if enough else Verdict.INSUFFICIENT_DATA
        reason = (
            f"no evidence of a wrong split: {evidence.detail}" if enough else "too few requests"
        )
    elif within and enough:
        verdict = Verdict.PASS
        reason = f"within the margin of {margin}: {change}"
    elif len(evaluator.last_seen) < len(TRACKS):
        reason = f"only the {next(iter(evaluator.last_seen))} has such samples"
    elif not enough:
        reason = (
            f"too few samples: {evidence.n_baseline:.0f} baseline, {evidence.n_canary:.0f} canary, "
            f"{metric.minimum_samples} needed on each"
        )
    else:
        reason = f"neither shown to be within the margin of {margin} nor beyond: {change}"
    return MetricVerdict(
        name=evaluator.name,
        verdict=verdict,
        estimate=evidence.estimate,
        interval=evidence.interval,
        evidence=_e_value(evidence.log_worse),
        threshold=threshold,
        evidence_within=_e_value(evidence.log_within),
        n_baseline=evidence.n_baseline,
        n_canary=evidence.n_canary,
        margin=metric.margin,
        criticality=metric.criticality.value,
        reason=reason,
    )


def obstacles(standing: Standing, metrics: Iterable[MetricVerdict]) -> list[str]:
    """What stands between the canary and a pass; empty when it passes."""
    config = standing.config
    out: list[str] = []
    if standing.elapsed < config.hold_s:
        out.append(f"{config.hold_s - standing.elapsed:.0f} s of the hold time are left")
    if standing.canary_requests < config.minimum_requests:
        out.append(
            f"the canary finished {standing.canary_requests:.0f} requests, "
            f"{config.minimum_requests} are needed"
        )
    for track in TRACKS:
        if track not in standing.health.last_usable:
            out.append(f"the {track} has not been scraped yet")
        elif standing.health.all_down(track):
            out.append(f"every instance of the {track} is down")
    out += [
        f"no metrics of the {t}" for t, _ in standing.health.silent(standing.now, standing.start)
    ]
    for found in metrics:
        metric = config.metrics[found.name]
        if metric.criticality is Criticality.ADVISORY:
            continue
        must = (
            metric.criticality is Criticality.REQUIRED and config.pass_rule is PassRule.NONINFERIOR
        )
        broken = found.verdict in (Verdict.FAIL, Verdict.METRICS_OUTAGE)
        crashed = metric.kind is MetricKind.CRASH and found.verdict is not Verdict.PASS
        if broken or crashed or (must and found.verdict is not Verdict.PASS):
            out.append(f"{found.name}: {found.reason}")
    return out


def _whole(
    standing: Standing, decision: Decision, metrics: tuple[MetricVerdict, ...]
) -> tuple[Verdict, tuple[str, ...]]:
    if decision.fail_at is not None:
        now = tuple(f"{m.name}: {m.reason}" for m in metrics if _fails_whole(standing, m))
        return Verdict.FAIL, now or decision.fail_reasons
    if decision.pass_at is not None:
        if standing.config.pass_rule is PassRule.NO_HARM:
            return Verdict.PASS, (
                f"no harm seen in {standing.canary_requests:.0f} requests; this step proves "
                "nothing about margins",
            )
        shown = tuple(
            f"{m.name}: {m.reason}"
            for m in metrics
            if m.verdict is Verdict.PASS and m.criticality == Criticality.REQUIRED.value
        )
        return Verdict.PASS, ("every required metric was shown to be within its margin", *shown)
    silent = standing.health.silent(standing.now, standing.start)
    if silent:
        return Verdict.METRICS_OUTAGE, tuple(
            f"no usable metrics of the {track} for {age:.0f} s" for track, age in silent
        )
    lost = tuple(
        f"{m.name}: {m.reason}"
        for m in metrics
        if m.verdict is Verdict.METRICS_OUTAGE and m.criticality == Criticality.REQUIRED.value
    )
    if lost:
        return Verdict.METRICS_OUTAGE, lost
    waiting = tuple(obstacles(standing, metrics))
    if standing.elapsed > standing.config.time_budget_s:
        spent = f"no decision within the time budget of {standing.config.time_budget_s:.0f} s"
        return Verdict.INSUFFICIENT_DATA, (f"futility: {spent}", *waiting)
    return Verdict.INSUFFICIENT_DATA, waiting
