"""Rows of the report from what the gates measured (`GateResult.measurements`), and from the evidence itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.adapters.report.model import BenchmarkRow, EvaluationRow, LoadPoint, RecipeRow
from lockgate.domain.evidence import BenchmarkEvidence
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import Measurements


def evaluation_rows(gate: GateResult) -> tuple[EvaluationRow, ...]:
    """One row a task that the evaluation gate judged."""
    return tuple(
        EvaluationRow(
            task=str(row["task"]),
            metric=str(row["metric"]),
            candidate=row.get("candidate"),
            stable=row.get("stable"),
            difference=row.get("difference"),
            interval=(row["lower"], row["upper"]) if "lower" in row else None,
            margin=float(row["margin"]),
            floor=row.get("floor"),
            items=row.get("items"),
            clusters=row.get("clusters"),
            samples=row.get("samples"),
            decision=Decision(row["decision"]),
        )
        for row in gate.measurements
        if "task" in row
    )


def benchmark_rows(gate: GateResult) -> tuple[BenchmarkRow, ...]:
    """One row a figure that the benchmark gate held against stable or against an absolute limit."""
    return tuple(_benchmark_row(row) for row in gate.measurements if "profile" in row)


def load_points(evidence: BenchmarkEvidence) -> tuple[LoadPoint, ...]:
    """The load levels of a benchmark, lightest first: those of a sweep, and each profile that is none."""
    measured: list[tuple[str, Any]] = []
    for profile in evidence.profiles:
        levels = getattr(profile, "curve", ())
        measured += [(profile.profile, level) for level in levels or (profile,)]
    points = [
        LoadPoint(
            profile=name,
            in_flight=level.requests_per_second * level.e2e_ms["mean"] / 1000,
            ttft_p50_ms=level.ttft_ms.get("p50"),
            ttft_p90_ms=level.ttft_ms.get("p90"),
            tpot_p50_ms=level.tpot_ms.get("p50"),
            tpot_p90_ms=level.tpot_ms.get("p90"),
            output_tokens_per_second=level.output_tokens_per_second,
        )
        for name, level in measured
    ]
    return tuple(sorted(points, key=lambda point: point.in_flight))


def recipe_row(
    measured: Measurements, *, name: str, recipe: Recipe, size_bytes: int, passed: bool
) -> RecipeRow:
    """Size, quality and speed of a candidate that was measured."""
    return RecipeRow(
        name=name,
        recipe=recipe,
        candidate=measured.candidate.digest,
        size_bytes=size_bytes,
        scores=tuple((task.task, task.score) for task in measured.evaluation.tasks),
        output_tokens_per_second=max(
            (p.output_tokens_per_second for p in measured.benchmark.profiles), default=None
        ),
        passed=passed,
    )


def _benchmark_row(row: Mapping[str, Any]) -> BenchmarkRow:
    metric = str(row["metric"])
    absolute = "tok/s" if "tokens per second" in metric else "ms"
    unit = str(row.get("unit", absolute))
    ratio = row.get("ratio")
    return BenchmarkRow(
        profile=str(row["profile"]),
        metric=metric,
        unit=unit,
        candidate=row.get("candidate"),
        stable=row.get("stable"),
        # A ratio of latencies above 1 is worse.
        change=ratio - 1 if ratio is not None else None,
        limit=row.get("margin"),
        absolute_limit=row.get("limit"),
        interval=(row["lower"] - 1, row["upper"] - 1) if "lower" in row else None,
        decision=Decision(row["decision"]),
    )
