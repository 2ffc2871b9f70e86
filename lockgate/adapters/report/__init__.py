"""The report of a model's releases: a page for release managers, a table for the terminal."""

from lockgate.adapters.report.gate_rows import (
    benchmark_rows,
    evaluation_rows,
    load_points,
    recipe_row,
)
from lockgate.adapters.report.headline import Check, answer
from lockgate.adapters.report.model import (
    Bake,
    BenchmarkRow,
    CandidateSummary,
    EvaluationRow,
    LoadPoint,
    RecipeRow,
    ReleaseStory,
    ReportInput,
    RequestedApproval,
    TrafficSummary,
    TransitionRow,
)
from lockgate.adapters.report.page import render_report, write_report
from lockgate.adapters.report.table import render_table

__all__ = [
    "Bake",
    "BenchmarkRow",
    "CandidateSummary",
    "Check",
    "EvaluationRow",
    "LoadPoint",
    "RecipeRow",
    "ReleaseStory",
    "ReportInput",
    "RequestedApproval",
    "TrafficSummary",
    "TransitionRow",
    "answer",
    "benchmark_rows",
    "evaluation_rows",
    "load_points",
    "recipe_row",
    "render_report",
    "render_table",
    "write_report",
]
