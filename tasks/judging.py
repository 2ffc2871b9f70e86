"""The judge at work on one canary step, or on the bake, with its configuration from the release's spec."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lockgate.domain.judge import (
    DEFAULT_METRICS,
    Criticality,
    Judge,
    JudgeConfig,
    JudgeReport,
    MetricConfig,
    PassRule,
    Verdict,
)
from lockgate.domain.judge.config import MetricKind
from lockgate.domain.objectives import Objectives, combined, without_control
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.spec import CanarySpec, CanaryStep, JudgeMargins
from lockgate.domain.trace import RequestRow, Scrape
from lockgate.errors import MetricsError, UsageError

SETTLE_SECONDS = 4.0
"""After a change of weight: until agents and gateways have followed, a scrape says nothing about the split."""


def judge_config(state: ReleaseState) -> JudgeConfig:
    """How the present step, or the bake, is judged. The canary's alpha is shared evenly by its steps, the bake being one
    where it is judged, so that it holds over all of them.

    Raises:
        ValueError: the state is neither in a canary step nor in a bake.
    """
    spec = state.canary
    if spec is None or state.since is None:
        raise ValueError(f"phase {state.phase} is not judged")
    start = parse_time(state.since).timestamp()
    if baking(state):
        return _bake_config(state, spec, start)
    if state.step is None:
        raise ValueError(f"phase {state.phase} is not a canary step")
    step = spec.steps[state.step]
    config = _config(
        spec,
        step.margins.on(spec.margins),
        pass_rule=PassRule.NONINFERIOR if step.judge_latency else PassRule.NO_HARM,
        judge_latency=step.judge_latency,
        step_start=start,
        settle_s=min(SETTLE_SECONDS, step.min_seconds / 2),
        hold_s=step.min_seconds,
        minimum_requests=step.min_requests,
        time_budget_s=max(step.max_seconds, step.min_seconds, 1.0),
        canary_weight=0.5 if state.fresh_baseline and step.weight else _share(step),
    )
    if step.traffic != "header":
        return config
    # Who asks by header asks for other things than everybody, and may mean to ask in vain.
    crashes_only = {
        name: metric
        if metric.kind is MetricKind.CRASH
        else metric.model_copy(update={"criticality": Criticality.ADVISORY})
        for name, metric in config.metrics.items()
    }
    return config.model_copy(update={"metrics": crashes_only})


def _share(step: CanaryStep) -> float | None:
    """The canary's part of all requests that either track answers; None where the other gets none."""
    part = step.weight / 100
    if step.traffic == "mirror":
        # Copies come on top of what stable answers.
        part = step.mirror_percent / (100 + step.mirror_percent)
    return part if 0 < part < 1 else None


def _bake_config(state: ReleaseState, spec: CanarySpec, start: float) -> JudgeConfig:
    """The old version is the baseline. Nothing has to be proved once more, so nothing is passed before the end; latencies
    are compared only where the control's replicas carry as much as the new version's."""
    end = max(0.0, spec.bake_seconds - 2 * spec.judge.block_seconds)
    settle = min(SETTLE_SECONDS, spec.bake_seconds / 2)
    new = state.occupant(state.stable) if state.stable is not None else None
    old = state.occupant(state.stable.other) if state.stable is not None else None
    share = 1 - spec.control / 100
    alike = False
    if state.stable is not None and new is not None and old is not None and 0 < share < 1:
        each = (
            share / state.replicas(state.stable),
            (1 - share) / state.replicas(state.stable.other),
        )
        alike = max(each) / min(each) <= spec.judge.max_load_ratio
    return _config(
        spec,
        spec.margins,
        pass_rule=PassRule.NO_HARM,
        judge_latency=alike,
        step_start=start,
        settle_s=settle,
        hold_s=max(settle, end),
        time_budget_s=max(spec.bake_seconds, 1.0),
        canary_weight=share if 0 < share < 1 else None,
    )


def baking(state: ReleaseState) -> bool:
    return Phase.BAKING in (state.phase, state.held_from)


def _config(spec: CanarySpec, margins: JudgeMargins, **of_step: Any) -> JudgeConfig:
    tuning = spec.judge
    return JudgeConfig(
        alpha=step_alpha(spec),
        block_s=tuning.block_seconds,
        drift_sd=tuning.drift_sd,
        drift_s=tuning.drift_seconds,
        drift_surprise=tuning.drift_surprise,
        max_load_ratio=tuning.max_load_ratio,
        metrics=_metrics(spec, margins),
        **of_step,
    )


def step_alpha(spec: CanarySpec) -> float:
    """One step's part of alpha. Comparison and SLOs of a bake share its part between them."""
    judged = bool(spec.bake_seconds) and (spec.control > 0 or not spec.slos.empty)
    return spec.alpha / max(1, len(spec.steps) + judged)


@contextmanager
def _judgeable() -> Iterator[None]:
    """What no server should send may be too much for the judge: that is want of metrics, and no end of its driver."""
    try:
        yield
    except (ArithmeticError, ValueError, LookupError, TypeError) as error:
        raise MetricsError(
            f"the servers' numbers cannot be judged: {type(error).__name__}: {error}",
            hint="keep the trace for a report of this fault, and move it away: the step is then judged from now on",
        ) from error


class StepJudge:
    """What watches one step or bake: the comparison of both tracks, and absolute SLOs in a bake that has them."""

    def __init__(self, state: ReleaseState) -> None:
        spec = state.canary
        if spec is None or state.since is None:
            raise ValueError(f"phase {state.phase} is not judged")
        self.config = config = judge_config(state)
        """How the comparison is judged."""
        self._baking = baking(state)
        ended = state.control_ended
        self._compared_until = math.inf if ended is None else parse_time(ended).timestamp()
        self._objectives: Objectives | None = None
        self._judge: Judge | None = None
        self._decided: JudgeReport | None = None
        both = False
        bake_ends = parse_time(state.resumed or state.since).timestamp() + spec.bake_seconds
        if self._baking:
            compared = state.weight > 0 or state.control_ended is not None
            both = compared and not spec.slos.empty
            alpha = step_alpha(spec) / 2 if both else step_alpha(spec)
            self.config = config = config.model_copy(update={"alpha": alpha})
            if not spec.slos.empty:
                self._objectives = Objectives(
                    spec.slos,
                    alpha=alpha,
                    start=parse_time(state.since).timestamp() + config.settle_s,
                    block_seconds=spec.judge.block_seconds,
                    # At the end of the bake the control ends too: what both shared until then stays shared.
                    compared_until=(
                        self._compared_until if self._compared_until < bake_ends else math.inf
                    ),
                )
            self._judge = Judge(config) if compared else None
        else:
            self._judge = Judge(config)

    @property
    def active(self) -> bool:
        """False for a bake without control and SLOs: there is nothing to judge."""
        return self._judge is not None or self._objectives is not None

    @property
    def step(self) -> str:
        """What tells this step, as it is judged, from every other: what one of them has made of a trace is another's too."""
        slos = self._objectives.levels.to_data() if self._objectives is not None else None
        said = (self.config.to_data(), self._compared_until, slos, self._judge is None)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @property
    def state(self) -> tuple[Judge | None, Objectives | None]:
        """All that was made of the records so far."""
        return self._judge, self._objectives

    def resume(self, state: tuple[Judge | None, Objectives | None]) -> None:
        """Take up `state`, of a judge of the same step, and go on from there."""
        self._judge, self._objectives = state

    def observe(self, record: Scrape | RequestRow) -> None:
        """Take one record. Raises MetricsError where its numbers are none that can be judged, as do `decided` and `look`."""
        with _judgeable():
            if self._judge is not None and record.time <= self._compared_until:
                self._judge.observe(record)
            if self._objectives is not None:
                self._objectives.observe(record)

    def decided(self) -> JudgeReport | None:
        """The report of the moment at which a pass or a fail was reached; of a bake a fail only: it is judged to its end.

        A step that has passed may wait long for its raise. It is judged on, and a fail takes the place of the pass.
        """
        if self._decided is not None and self._decided.verdict is Verdict.FAIL:
            return self._decided
        if self._baking or self._judge is None:
            report = self.look(None)
        else:
            with _judgeable():
                report = self._judge.decided()
        if report is None or (self._baking and report.verdict is not Verdict.FAIL):
            return None
        if self._decided is None or report.verdict is Verdict.FAIL:
            self._decided = report
        return self._decided

    def look(self, now: float | None) -> JudgeReport | None:
        # That a control which has ended is silent is no outage.
        moment = now if now is None else min(now, self._compared_until)
        with _judgeable():
            compared = self._judge.look(moment) if self._judge is not None else None
            levels = self._objectives.report() if self._objectives is not None else None
        if levels is not None and compared is None:
            levels = without_control(levels)
        return combined(compared, levels)


def _metrics(spec: CanarySpec, margins: JudgeMargins) -> dict[str, MetricConfig]:
    unknown = set(spec.judge.guards) - set(DEFAULT_METRICS)
    if unknown:
        raise UsageError(
            f"canary.judge.guards names no metric: {', '.join(sorted(unknown))}",
            hint=f"known: {', '.join(DEFAULT_METRICS)}",
        )
    of_kind = {
        MetricKind.LATENCY: margins.latency,
        MetricKind.TAIL: margins.tail,
        MetricKind.RATIO: margins.errors,
        MetricKind.SIZE: margins.output_length,
        MetricKind.MIX: margins.finish_reasons,
    }
    metrics = {}
    for name, metric in DEFAULT_METRICS.items():
        margin = margins.probes if name == "quality_probe" else of_kind.get(metric.kind)
        update: dict[str, Any] = {"margin": metric.margin if margin is None else margin}
        if name in spec.judge.guards and metric.criticality is Criticality.REQUIRED:
            update["criticality"] = Criticality.GUARD
        metrics[name] = metric.model_copy(update=update)
    return metrics
