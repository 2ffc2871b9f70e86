"""The judge's reports over time: each metric's verdict, and its evidence against what decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lockgate.adapters.report import canvas
from lockgate.adapters.report.canvas import TimeAxis, corner_label, draw_figure
from lockgate.adapters.report.model import Watched
from lockgate.adapters.report.panels import Panel
from lockgate.domain.judge import JudgeReport, MetricVerdict, Verdict

VERDICT_WORDS = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.INSUFFICIENT_DATA: "undecided",
    Verdict.METRICS_OUTAGE: "no metrics",
}
VERDICT_COLOURS = {
    Verdict.PASS: canvas.PASS,
    Verdict.FAIL: canvas.FAIL,
    Verdict.INSUFFICIENT_DATA: canvas.UNDECIDED,
    Verdict.METRICS_OUTAGE: canvas.OUTAGE,
}
_VERDICT_HATCHES = {Verdict.FAIL: "xxxx", Verdict.METRICS_OUTAGE: "...."}
_LINE_STYLES = (
    ("#111820", "-"),
    ("#7b3294", (0, (6, 2))),
    ("#00695c", (0, (2, 1.5))),
    ("#8c510a", (0, (7, 2, 1.5, 2))),
)
_OTHERS = "#b9c2cb"
_BEHIND = {"facecolor": "white", "linewidth": 0, "pad": 1}
"""Keeps the dotted lines of transitions out of words."""
_LOWEST = -3.0
"""Evidence below a thousandth of what decides is drawn there."""
_NOTABLE = -2.5
"""Evidence below this is not worth a name in the legend."""
_HIGHEST = 6.0
"""And above a million times: one overwhelming metric must not flatten the others."""

Series = dict[str, tuple[list[float], list[float]]]


def timed_looks(story: Watched) -> list[tuple[float, JudgeReport]]:
    """The looks whose time is known, in order of time."""
    return sorted(
        ((r.time, r) for r in story.looks if r.time is not None), key=lambda look: look[0]
    )


def last_metrics(story: Watched) -> list[MetricVerdict]:
    """Each metric as the last look that judged it saw it: failed ones first, then by evidence.

    A metric that a later step does not judge keeps its last judged state.
    """
    last: dict[str, MetricVerdict] = {}
    for report in [r for _, r in timed_looks(story)] or list(story.looks):
        for metric in report.metrics:
            judged = metric.threshold is not None or metric.name not in last
            if judged or last[metric.name].threshold is None:
                last[metric.name] = metric
    rank = {Verdict.FAIL: 0, Verdict.METRICS_OUTAGE: 1}
    return sorted(
        last.values(),
        key=lambda m: (rank.get(m.verdict, 2), m.threshold is None, -_ratio(m), m.name),
    )


def was_judged(metric: MetricVerdict) -> bool:
    """Whether the judge had anything to say of it: a share of alpha, or a verdict without one (crashes)."""
    return metric.threshold is not None or metric.verdict is not Verdict.INSUFFICIENT_DATA


def _ratio(metric: MetricVerdict) -> float:
    return metric.evidence / metric.threshold if metric.threshold else 0.0


def verdict_panel(story: Watched, axis: TimeAxis, prefix: str) -> Panel:
    title = "Verdicts over time"
    looks = timed_looks(story)
    if not looks:
        return Panel(
            "verdicts", title, "No data: the judge was not asked, or its reports are not at hand."
        )
    series = {"all together": [(time, report.verdict) for time, report in looks]}
    for metric in filter(was_judged, last_metrics(story)):
        series[metric.name] = [
            (time, m.verdict)
            for time, report in looks
            for m in report.metrics
            if m.name == metric.name
        ]
    segments = {name: _segments(points, looks[-1][0]) for name, points in series.items()}
    endings = {name: _ending(parts, axis) for name, parts in segments.items()}

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        plot = axes[0]
        plot.set_ylim(len(segments), 0)
        plot.yaxis.set_major_locator(NullLocator())
        plot.grid(visible=False)
        plot.spines["left"].set_visible(False)
        for row, (name, parts) in enumerate(segments.items()):
            for start, end, verdict in parts:
                hatch = _VERDICT_HATCHES.get(verdict)
                plot.broken_barh(
                    [(start, max(end - start, axis.span * 0.012))],
                    (row + 0.56, 0.3),
                    facecolor=VERDICT_COLOURS[verdict],
                    hatch=hatch,
                    edgecolor="white" if hatch else "none",
                    linewidth=0,
                )
            weight = "bold" if row == 0 else "normal"
            plot.text(
                axis.origin,
                row + 0.46,
                name,
                fontsize=10.5,
                fontweight=weight,
                va="baseline",
                bbox=_BEHIND,
            )
            undecided = parts[-1][2] is Verdict.INSUFFICIENT_DATA
            plot.text(
                axis.origin + axis.span,
                row + 0.46,
                endings[name],
                fontsize=10,
                ha="right",
                va="baseline",
                bbox=_BEHIND,
                fontweight=weight if undecided else "bold",
                color=canvas.MUTED if undecided else VERDICT_COLOURS[parts[-1][2]],
            )

    told = "; ".join(f"{name}: {ending}" for name, ending in endings.items())
    return Panel(
        "verdicts",
        title,
        f"{len(looks)} looks; at the last one: {VERDICT_WORDS[looks[-1][1].verdict]}.",
        draw_figure(
            draw,
            axis=axis,
            heights=[27 * len(segments)],
            prefix=f"{prefix}-verdicts",
            title=title,
            description=told,
        ),
        "One bar a metric. Grey: undecided, or not judged in this step; green: within its margin; red and hatched: worse "
        "than its margin; violet and dotted: no metrics. Right: the last verdict and since when.",
    )


def _segments(
    points: Sequence[tuple[float, Verdict]], end: float
) -> list[tuple[float, float, Verdict]]:
    """Runs of the same verdict."""
    runs: list[tuple[float, float, Verdict]] = []
    for (time, verdict), following in zip(points, [*(t for t, _ in points[1:]), end], strict=True):
        if runs and runs[-1][2] is verdict:
            runs[-1] = (runs[-1][0], following, verdict)
        else:
            runs.append((time, following, verdict))
    return runs


def _ending(parts: Sequence[tuple[float, float, Verdict]], axis: TimeAxis) -> str:
    start, _, verdict = parts[-1]
    words = VERDICT_WORDS[verdict]
    return words if verdict is Verdict.INSUFFICIENT_DATA else f"{words} since {axis.clock(start)}"


def evidence_panel(story: Watched, axis: TimeAxis, prefix: str) -> Panel:
    """Evidence over what decides, so that one line holds for all metrics whatever their share of alpha."""
    title = "Evidence over time"
    looks = timed_looks(story)
    worse = _series(looks, axis, lambda m: m.evidence / m.threshold if m.threshold else None)
    within = _series(
        looks,
        axis,
        lambda m: (
            m.evidence_within * story.beta if m.criticality == "required" and m.threshold else None
        ),
    )
    if not worse:
        return Panel("evidence", title, "No data: no look of the judge names evidence.")
    order = sorted(worse, key=lambda name: -_peak(worse[name]))
    # Lines that moved get names: those towards a fail first, then those towards a pass.
    named = sorted(
        worse,
        key=lambda n: (
            -max(_peak(worse[n]), _NOTABLE),
            -(_peak(within[n]) if n in within else _LOWEST),
        ),
    )[: len(_LINE_STYLES)]
    crossed = [n for n in order if _peak(worse[n]) >= 0]
    shown = [n for n in within if _peak(within[n]) >= 0]

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        for plot, series, label, colour in (
            (axes[0], worse, "worse than the margin", canvas.FAIL),
            (axes[1], within, "within the margin", canvas.PASS),
        ):
            corner_label(plot, label)
            _draw_evidence(plot, series, named, colour)
        handles = [
            axes[0].plot([], [], color=c, linestyle=s, linewidth=1.8, label=n)[0]
            for (c, s), n in zip(_LINE_STYLES, named, strict=False)
        ]
        if len(order) > len(named):
            handles.append(
                axes[0].plot([], [], color=_OTHERS, linewidth=1, label="other metrics")[0]
            )
        axes[0].legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.17),
            ncols=1 if narrow else 3,
            frameon=False,
            fontsize=10,
            handlelength=2.6,
            borderpad=0,
            borderaxespad=0.2,
            labelspacing=0.25,
            labelcolor=canvas.INK,
        )

    closest = order[0]
    summary = (
        f"Shown to be worse than the margin: {', '.join(crossed)}. "
        if crossed
        else f"No metric was shown to be worse than its margin; closest: {closest}, "
        f"at {_share(_peak(worse[closest]))} of its threshold. "
    ) + (
        f"Shown to be within the margin: {', '.join(shown)}."
        if shown
        else "No required metric was shown to be within its margin."
    )
    return Panel(
        "evidence",
        title,
        summary,
        draw_figure(
            draw,
            axis=axis,
            heights=[110, 110],
            gap=42,
            prefix=f"{prefix}-evidence",
            title=title,
            description=summary,
            legend_rows=min(len(order), len(named) + 1),
        ),
        "E-values as a multiple of what decides (log scale, the largest so far in each step): above, a metric fails when it "
        "reaches 1; below, a required metric passes when it reaches 1. The judge may look at any time without spending "
        "alpha twice. What lies outside the picture is drawn at its edge.",
    )


def _series(
    looks: Sequence[tuple[float, JudgeReport]],
    axis: TimeAxis,
    value: Callable[[MetricVerdict], float | None],
) -> Series:
    """Log10 of `value` of each metric over time; a gap where a step ended and evidence began anew."""
    series: Series = {}
    for time, report in looks:
        for metric in report.metrics:
            found = value(metric)
            if found is None:
                continue
            times, values = series.setdefault(metric.name, ([], []))
            if times and any(times[-1] < mark <= time for mark in axis.marks):
                times.append(time)
                values.append(np.nan)
            times.append(time)
            values.append(
                float(np.clip(np.log10(found), _LOWEST, _HIGHEST)) if found > 0 else _LOWEST
            )
    return series


def _peak(points: tuple[list[float], list[float]]) -> float:
    return float(np.nanmax(points[1]))


def _draw_evidence(plot: Axes, series: Series, named: Sequence[str], colour: str) -> None:
    highest = max([_peak(points) for points in series.values()], default=0.0)
    top = max(highest, 0.0) + 0.6
    plot.set_ylim(_LOWEST - 0.15, top)
    plot.axhspan(0, top, facecolor=colour, alpha=0.07, linewidth=0)
    plot.axhline(0, color=colour, linewidth=1.4)
    step = 1 if top < 2 else 2
    ticks = list(range(-2 if step == 2 else -3, int(np.floor(top)) + 1, step))
    plot.yaxis.set_major_locator(FixedLocator(ticks))
    plot.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))
    for name, points in series.items():
        if name not in named:
            plot.plot(*points, color=_OTHERS, linewidth=1)
    for (line, style), name in zip(_LINE_STYLES, named, strict=False):
        if name in series:
            plot.plot(*series[name], color=line, linestyle=style, linewidth=1.8)


def _tick(exponent: float) -> str:
    value = round(exponent)
    if value < 0:
        return f"1/{10**-value}"
    return f"{10**value}" if value <= 3 else f"1e{value}"


def _share(exponent: float) -> str:
    return "less than 1%" if exponent < -2 else f"{100 * 10**exponent:.0f}%"
