"""The judge at work on one canary step: its configuration from the release's spec, and its trace on disk.

The trace is the judge's whole memory. A driver that dies leaves it behind; the next one replays it, spends no alpha twice and
comes to the same verdict.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lockgate.domain.judge import (
    DEFAULT_METRICS,
    Criticality,
    Judge,
    JudgeConfig,
    JudgeReport,
    MetricConfig,
    PassRule,
)
from lockgate.domain.judge.config import MetricKind
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.spec import CanarySpec
from lockgate.domain.trace import RequestRow, Scrape, parse_line, to_line
from lockgate.errors import MetricsError, UsageError

SETTLE_SECONDS = 4.0
"""After a change of weight: until agents and gateways have followed, a scrape says nothing about the split."""


def judge_config(state: ReleaseState) -> JudgeConfig:
    """How the present step is judged. The canary's alpha is shared evenly by its steps, so that it holds over all of them.

    Raises:
        ValueError: the state is not in a canary step.
    """
    if state.canary is None or state.step is None or state.since is None:
        raise ValueError(f"phase {state.phase} is not a canary step")
    spec, step = state.canary, state.canary.steps[state.step]
    tuning = spec.judge
    return JudgeConfig(
        alpha=spec.alpha / len(spec.steps),
        pass_rule=PassRule.NONINFERIOR if step.judge_latency else PassRule.NO_HARM,
        judge_latency=step.judge_latency,
        step_start=parse_time(state.since).timestamp(),
        settle_s=min(SETTLE_SECONDS, step.min_seconds / 2),
        hold_s=step.min_seconds,
        time_budget_s=max(step.max_seconds, step.min_seconds, 1.0),
        block_s=tuning.block_seconds,
        drift_sd=tuning.drift_sd,
        drift_s=tuning.drift_seconds,
        drift_surprise=tuning.drift_surprise,
        max_load_ratio=tuning.max_load_ratio,
        canary_weight=step.weight / 100 if step.weight < 100 else None,
        metrics=_metrics(spec),
    )


def _metrics(spec: CanarySpec) -> dict[str, MetricConfig]:
    unknown = set(spec.judge.guards) - set(DEFAULT_METRICS)
    if unknown:
        raise UsageError(
            f"canary.judge.guards names no metric: {', '.join(sorted(unknown))}",
            hint=f"known: {', '.join(DEFAULT_METRICS)}",
        )
    margins = {
        MetricKind.LATENCY: spec.margins.latency,
        MetricKind.RATIO: spec.margins.errors,
        MetricKind.SIZE: spec.margins.output_length,
        MetricKind.MIX: spec.margins.finish_reasons,
    }
    metrics = {}
    for name, metric in DEFAULT_METRICS.items():
        update: dict[str, Any] = {"margin": margins.get(metric.kind, metric.margin)}
        if name in spec.judge.guards and metric.criticality is Criticality.REQUIRED:
            update["criticality"] = Criticality.GUARD
        metrics[name] = metric.model_copy(update=update)
    return metrics


class StepTrace:
    """Append-only file of one step's scrapes, one JSON line each, and beside it what the judge said after each look."""

    def __init__(self, path: Path, looks: Path) -> None:
        self.path = path
        self._looks = looks
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_partial_line(path)
        _drop_partial_line(looks)

    def replay(self, judge: Judge) -> float | None:
        """Tell the judge everything seen so far; the time of the newest scrape, None for an empty trace.

        Raises:
            MetricsError: a line is no scrape; a trace with a hole in it decides nothing.
        """
        newest: float | None = None
        if not self.path.exists():
            return None
        with self.path.open() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    seen = parse_line(line)
                except ValueError as error:
                    raise MetricsError(
                        f"line {number} of the trace is not readable: {error}", log=self.path,
                        hint="move the file away: the step is then judged from now on",
                    ) from error  # fmt: skip
                judge.observe(seen)
                newest = seen.time if newest is None else max(newest, seen.time)
        return newest

    def append(self, records: Iterable[Scrape | RequestRow]) -> None:
        """Written and handed to the operating system before the judge sees them: a SIGKILL loses at most a partial line."""
        with self.path.open("a") as lines:
            lines.write("".join(to_line(record) + "\n" for record in records))

    def said(self, report: JudgeReport) -> None:
        """Keep what the judge said, for the release's report; nothing is decided from it."""
        with self._looks.open("a") as lines:
            lines.write(json.dumps(report.to_data()) + "\n")


def _drop_partial_line(path: Path) -> None:
    """A writer killed in mid-line leaves a tail without a newline; what follows must not be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep > 0:
            file.seek(max(0, keep - 65536))
            chunk = file.read(keep - file.tell())
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                keep = keep - len(chunk) + newline + 1
                break
            keep -= len(chunk)
        if keep != size:
            file.truncate(keep)
