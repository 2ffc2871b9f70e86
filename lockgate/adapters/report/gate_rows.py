"""Rows of the report from what the gates measured (`GateResult.measurements`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.adapters.report.model import BenchmarkRow, EvaluationRow
from lockgate.domain.gates.base import Decision, GateResult


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
            decision=Decision(row["decision"]),
        )
        for row in gate.measurements
        if "task" in row
    )


def benchmark_rows(gate: GateResult) -> tuple[BenchmarkRow, ...]:
    """One row a figure that the benchmark gate held against stable or against an absolute limit."""
    return tuple(_benchmark_row(row) for row in gate.measurements if "profile" in row)


def _benchmark_row(row: Mapping[str, Any]) -> BenchmarkRow:
    metric = str(row["metric"])
    unit = "tok/s" if "tokens per second" in metric or "tokens/s" in metric else "ms"
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
