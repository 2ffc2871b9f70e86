"""What was measured before a canary: scores by task, latencies by load, and what each recipe costs and gives.

Figures as in `panels`: the description of a picture carries its numbers, and a panel without data says what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator, ScalarFormatter

from lockgate.adapters.report import canvas
from lockgate.adapters.report.canvas import corner_label, draw_figure, few_ticks
from lockgate.adapters.report.model import EvaluationRow, LoadPoint, RecipeRow, ReleaseStory
from lockgate.adapters.report.panels import DataTable, Panel
from lockgate.adapters.report.wording import number
from lockgate.domain.gates.base import Decision

_ROW_PIXELS = 46
_DECIDED = {Decision.PASS: canvas.PASS, Decision.FAIL: canvas.FAIL}


def scores_panel(story: ReleaseStory, prefix: str) -> Panel | None:
    """Score of the candidate by task, with its interval, against stable and the margin. None without an evaluation."""
    rows = [row for row in story.evaluation if row.candidate is not None]
    if not rows:
        return None
    title = "Score by task"
    told = "; ".join(_score_words(row) for row in rows)
    lowest = min(value for row in rows for value in _values(row))

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        plot = axes[0]
        for place, row in enumerate(rows):
            _draw_score(plot, -place, row)
        plot.set_ylim(-len(rows) + 0.45, 0.75)
        plot.yaxis.set_major_locator(NullLocator())
        plot.grid(visible=True, axis="x")
        plot.grid(visible=False, axis="y")
        plot.spines["left"].set_visible(False)
        plot.set_xlim(max(0.0, lowest - 0.08), 1.02)
        plot.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.1f}"))
        plot.set_xlabel("score (share of right answers)", fontsize=10)

    compared = any(row.stable is not None for row in rows)
    reading = (
        "Diamond: the candidate, with the interval that the gate uses (of the paired difference, laid at stable's score). "
        "Circle: stable. Red line: the margin; the candidate passes where its whole interval lies to the right of it."
        if compared
        else "Diamond: the candidate. Red line: the floor. A first release has nothing to be compared with."
    )
    return Panel(
        "scores",
        title,
        told + ".",
        draw_figure(
            draw, axis=None, heights=[_ROW_PIXELS * len(rows)], prefix=f"{prefix}-scores", title=title,
            description=told,
        ),
        reading,
        tracks=compared,
    )  # fmt: skip


def _values(row: EvaluationRow) -> list[float]:
    values = [v for v in (row.candidate, row.stable, row.floor) if v is not None]
    if row.stable is not None:
        values.append(row.stable - row.margin)
        values += [row.stable + end for end in row.interval or () if end is not None]
    return values


def _score_words(row: EvaluationRow) -> str:
    text = f"{row.task} {number(row.candidate)}"
    if row.stable is not None:
        text += f" against {number(row.stable)}"
    return f"{text}, {row.decision.value.replace('_', ' ')}"


def _draw_score(plot: Axes, place: float, row: EvaluationRow) -> None:
    colour = _DECIDED.get(row.decision, canvas.MUTED)
    limit = row.floor if row.stable is None else row.stable - row.margin
    if limit is not None:
        plot.plot([limit, limit], [place - 0.18, place + 0.18], color=canvas.FAIL, linewidth=1.5)
    if row.stable is not None:
        plot.plot([row.stable], [place], "o", color=canvas.STABLE, markersize=7)
        low, high = row.interval or (None, None)
        if low is not None and high is not None:
            ends = [row.stable + low, row.stable + high]
            plot.plot(ends, [place, place], color=canvas.CANARY, linewidth=2.4, alpha=0.75)
    if row.candidate is not None:
        plot.plot([row.candidate], [place], "D", color=canvas.CANARY, markersize=6)
    plot.annotate(
        row.task, (0, place + 0.3), xycoords=("axes fraction", "data"), fontsize=10, color=canvas.INK
    )  # fmt: skip
    word = row.decision.value.replace("_", " ")
    plot.annotate(
        word, (1, place + 0.3), xycoords=("axes fraction", "data"), fontsize=10, color=colour,
        ha="right", fontweight="bold",
    )  # fmt: skip


def load_panel(story: ReleaseStory, prefix: str) -> Panel | None:
    """Latency and throughput by load. None where the evidence is not at hand."""
    if not story.load:
        return None
    title = "Latency by load"
    told = "; ".join(
        f"{p.profile}: {number(p.in_flight)} in flight, TTFT p50 {number(p.ttft_p50_ms)} ms, "
        f"time per token p50 {number(p.tpot_p50_ms)} ms, {number(p.output_tokens_per_second)} tokens/s"
        for p in story.load
    )
    curves = [("canary", canvas.CANARY, "D", story.load)]
    if story.stable_load:
        curves.insert(0, ("stable", canvas.STABLE, "o", story.stable_load))
    panes = (
        ("Time to first token, ms", "ttft_p50_ms", "ttft_p90_ms"),
        ("Time per output token, ms", "tpot_p50_ms", "tpot_p90_ms"),
        ("Output tokens a second", "output_tokens_per_second", None),
    )

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        levels = [p.in_flight for _, _, _, points in curves for p in points]
        for plot, (label, middle, tail) in zip(axes, panes, strict=True):
            corner_label(plot, label)
            top = 0.0
            for _, colour, marker, points in curves:
                top = max(top, _draw_curve(plot, points, middle, colour, marker, dashed=False))
                if tail is not None:
                    top = max(top, _draw_curve(plot, points, tail, colour, marker, dashed=True))
            few_ticks(plot, top * 1.08)
            plot.set_xscale("log", base=2)
            plot.set_xlim(min(levels) / 1.3, max(levels) * 1.3)
            plot.xaxis.set_major_formatter(ScalarFormatter())
            plot.xaxis.set_minor_locator(NullLocator())
        axes[-1].set_xlabel("requests in flight (mean)", fontsize=10)

    return Panel(
        "load",
        title,
        told + ".",
        draw_figure(
            draw, axis=None, heights=[104, 104, 104], gap=44, prefix=f"{prefix}-load", title=title,
            description=told,
        ),
        "Each point is a load profile or a level of a sweep, placed by the requests that were under way at once on average "
        "(requests a second times mean duration). Solid: median; dashed: 90th percentile.",
        _load_table(curves[-1][3]),
        tracks=bool(story.stable_load),
    )  # fmt: skip


def _draw_curve(
    plot: Axes, points: Sequence[LoadPoint], field: str, colour: str, marker: str, *, dashed: bool
) -> float:
    """Draws what is known; gives the highest value."""
    known = [(p.in_flight, v) for p in points if (v := getattr(p, field)) is not None]
    if not known:
        return 0.0
    plot.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=colour,
        marker="" if dashed and len(known) > 1 else marker,
        markerfacecolor="none" if dashed else colour,
        markersize=5,
        linestyle=(0, (3, 2)) if dashed else "-",
        linewidth=1.3 if dashed else 1.8,
    )
    return max(y for _, y in known)


def _load_table(points: Sequence[LoadPoint]) -> DataTable:
    columns = ("profile", "in flight", "TTFT p50, ms", "TTFT p90, ms", "per token p50, ms", "per token p90, ms", "tokens/s")  # fmt: skip
    return DataTable(
        columns,
        tuple(
            (
                p.profile, *(
                    number(v)
                    for v in (
                        p.in_flight, p.ttft_p50_ms, p.ttft_p90_ms, p.tpot_p50_ms, p.tpot_p90_ms,
                        p.output_tokens_per_second,
                    )
                ),
            )
            for p in points
        ),
    )  # fmt: skip


def recipes_panel(rows: Sequence[RecipeRow]) -> Panel | None:
    """Size, quality and speed of what was measured. None for fewer than two: there is nothing to be chosen from."""
    known = [row for row in rows if row.mean_score is not None]
    if len(known) < 2:
        return None
    title = "Size, quality and speed"
    told = "; ".join(
        f"{row.name}: {row.size_bytes / 1e6:.0f} MB, mean score {number(row.mean_score)}, "
        f"{number(row.output_tokens_per_second)} tokens/s, {'passed' if row.passed else 'refused'}"
        for row in known
    )

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        sizes = [row.size_bytes / 1e6 for row in known]
        panes = (
            ("Mean score", [row.mean_score for row in known]),
            ("Output tokens a second", [row.output_tokens_per_second for row in known]),
        )
        for plot, (label, values) in zip(axes, panes, strict=True):
            corner_label(plot, label)
            plot.set_xlim(0, max(sizes) * 1.3)
            few_ticks(plot, max((v for v in values if v is not None), default=1.0) * 1.18)
            _draw_recipes(plot, known, sizes, values)
        axes[-1].set_xlabel("size of the model, MB", fontsize=10)

    tasks = sorted({task for row in known for task, _ in row.scores})
    table = DataTable(
        ("candidate", "recipe", "MB", *tasks, "tokens/s", "gates"),
        tuple(
            (
                row.name, row.recipe.value, f"{row.size_bytes / 1e6:.0f}",
                *(number(dict(row.scores).get(task)) for task in tasks),
                number(row.output_tokens_per_second), "passed" if row.passed else "refused",
            )
            for row in known
        ),
    )  # fmt: skip
    return Panel(
        "recipes",
        title,
        told + ".",
        draw_figure(
            draw, axis=None, heights=[150, 150], gap=46, prefix="recipes", title=title, description=told
        ),
        "Each point is a candidate that was measured here. Filled: its gates let it pass; hollow: refused. The score is the "
        "mean over the evaluation's tasks; the speed is that of the load profile with the highest throughput.",
        table,
    )  # fmt: skip


def _draw_recipes(
    plot: Axes, rows: Sequence[RecipeRow], sizes: Sequence[float], values: Sequence[float | None]
) -> None:
    placed: list[tuple[float, float]] = []
    low, high = plot.get_ylim()
    wide = plot.get_xlim()[1]
    for row, size, value in sorted(
        zip(rows, sizes, values, strict=True), key=lambda r: (r[1], r[0].name)
    ):
        if value is None:
            continue
        colour = canvas.PASS if row.passed else canvas.FAIL
        plot.plot([size], [value], "o", color=colour, markersize=7, markerfacecolor=colour if row.passed else "none")  # fmt: skip
        # Names of points that lie close to each other stand below each other.
        near = sum(abs(x - size) < wide * 0.25 and abs(y - value) < (high - low) * 0.13 for x, y in placed)  # fmt: skip
        placed.append((size, value))
        plot.annotate(
            row.name, (size, value), xytext=(9, 5 - 13 * near), textcoords="offset points", fontsize=10,
            color=canvas.INK, va="center",
        )  # fmt: skip
