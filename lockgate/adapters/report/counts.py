"""Requests and failures by track over time, from the gateway's counters and the engine's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import beta

from lockgate.adapters.report.canvas import TimeAxis, draw_figure, few_ticks
from lockgate.adapters.report.model import Watched
from lockgate.adapters.report.panels import COLOURS, DataTable, Panel, track_names
from lockgate.adapters.report.traces import BASELINE, CANARY, TRACKS, Trace
from lockgate.adapters.report.windows import Array, window_edges, window_sums
from lockgate.domain.judge.config import GATEWAY_REQUESTS, GATEWAY_SERVER_ERRORS

_REQUESTS = (
    ("at the gateway", "envoy_cluster_upstream_rq_total"),
    ("in the gateway's log", GATEWAY_REQUESTS),
    ("by the engine, finished ones only", "vllm:request_success_total"),
)
"""Where requests are counted, in order of preference."""
_FAILURES = (
    ("5xx at the gateway", 'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}'),
    ("5xx in the gateway's log", GATEWAY_SERVER_ERRORS),
    ("engine error", 'vllm:request_success_total{finished_reason="error"}'),
    ("engine abort", 'vllm:request_success_total{finished_reason="abort"}'),
)


def requests_by_track(trace: Trace) -> tuple[str, dict[str, tuple[Array, Array]]] | None:
    """Request increments of each track and where they were counted."""
    for where, selector in _REQUESTS:
        found = {t: trace.increments(t, selector) for t in TRACKS if trace.has(t, selector)}
        if found and any(v.sum() for _, v in found.values()):
            return where, found
    return None


def requests_panel(story: Watched, trace: Trace, axis: TimeAxis, prefix: str) -> Panel:
    title = "Requests by slot"
    found = requests_by_track(trace)
    if found is None:
        return Panel("requests", title, "No data: the trace counts no request on either track.")
    source, increments = found
    names = track_names(story)
    edges = window_edges(axis.origin, axis.end)
    width = edges[1] - edges[0]
    sums = {t: window_sums(*increments.get(t, (np.empty(0), np.empty(0))), edges) for t in TRACKS}
    totals = {t: int(sums[t].sum()) for t in TRACKS}
    share = 100 * totals[CANARY] / sum(totals.values())

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        plot = axes[0]
        bottom = np.zeros(len(edges) - 1)
        for track in TRACKS:
            rate = sums[track] / width
            plot.bar(
                edges[:-1],
                rate,
                width * 0.86,
                bottom=bottom,
                align="edge",
                color=COLOURS[track],
                alpha=0.85,
                hatch="////" if track == CANARY else None,
                edgecolor="white",
                linewidth=0,
            )
            bottom = bottom + rate
        few_ticks(plot, float(bottom.max()) * 1.08)

    return Panel(
        "requests",
        title,
        f"{totals[BASELINE]:,} requests to {names[BASELINE]}, {totals[CANARY]:,} to {names[CANARY]} ({share:.1f}% of all "
        f"in this record); counted {source}.",
        draw_figure(
            draw,
            axis=axis,
            heights=[110],
            prefix=f"{prefix}-requests",
            title=title,
            description=f"{names[BASELINE]} {totals[BASELINE]} requests, {names[CANARY]} {totals[CANARY]} requests.",
        ),
        f"Requests per second in windows of {width:.0f} s, stacked: {story.words[0]} below, {story.words[1]} above. The "
        f"table compares the share that the {story.words[1]} got with the weight that was committed.",
        _share_table(story, axis, names, increments),
        tracks=True,
    )


def _share_table(
    story: Watched,
    axis: TimeAxis,
    names: dict[str, str],
    increments: dict[str, tuple[Array, Array]],
) -> DataTable:
    starts = [t.time.timestamp() for t in story.transitions]
    rows = []
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else axis.end
        counts = {}
        for track in TRACKS:
            times, values = increments.get(track, (np.empty(0), np.empty(0)))
            counts[track] = int(values[(times > start) & (times <= end)].sum())
        total = sum(counts.values())
        low, high = proportion_interval(counts[CANARY], total)
        rows.append(
            (
                f"{index + 1}",
                f"{axis.clock(start)} to {axis.clock(end)}",
                f"{story.transitions[index].weight}%",
                f"{counts[BASELINE]:,}",
                f"{counts[CANARY]:,}",
                f"{100 * counts[CANARY] / total:.1f}% ({100 * low:.1f} to {100 * high:.1f}%)"
                if total
                else "–",
            )
        )
    columns = (
        "after",
        "time",
        "weight committed",
        names[BASELINE],
        names[CANARY],
        f"share of the {story.words[1]}",
    )
    return DataTable(columns, tuple(rows))


def errors_panel(story: Watched, trace: Trace, axis: TimeAxis, prefix: str) -> Panel:
    title = "Failures by track"
    if trace.start is None:
        return Panel("errors", title, "No data: the trace is empty.")
    names = track_names(story)
    edges = window_edges(axis.origin, axis.end)
    width = edges[1] - edges[0]
    kinds = [k for k in _FAILURES if any(trace.has(t, k[1]) for t in TRACKS)]
    failures = {
        t: [
            (label, window_sums(*trace.increments(t, selector), edges)) for label, selector in kinds
        ]
        for t in TRACKS
    }
    sums = {
        t: np.sum([v for _, v in failures[t]] or [np.zeros(len(edges) - 1)], axis=0) for t in TRACKS
    }
    table = _failure_table(story, trace, names, {t: dict(failures[t]) for t in TRACKS})
    if not kinds:
        return Panel(
            "errors", title, "No data: the trace holds no counter of failures.", table=table
        )
    summary = "; ".join(
        f"{names[t]}: {int(sums[t].sum())} failures"
        + "".join(f", {int(v.sum())} {label}" for label, v in failures[t] if v.sum())
        for t in TRACKS
    )
    down = [
        f"{names[d.track]} instance {d.instance} did not answer its scrapes from {axis.clock(d.start)} to {axis.clock(d.end)}"
        for d in trace.down
    ]
    if not any(s.any() for s in sums.values()) and not trace.down:
        counted = ", ".join(k[0] for k in kinds)
        return Panel(
            "errors",
            title,
            f"No failure on either track during the whole record (counted: {counted}). Every scrape was answered.",
            table=table,
        )

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        plot = axes[0]
        for track, offset in ((BASELINE, 0.06), (CANARY, 0.5)):
            plot.bar(
                edges[:-1] + offset * width,
                sums[track],
                width * 0.42,
                align="edge",
                color=COLOURS[track],
                hatch="////" if track == CANARY else None,
                edgecolor="white",
                linewidth=0,
            )
        top = max(float(s.max()) for s in sums.values())
        few_ticks(plot, max(top, 1.0) * 1.15)
        plot.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        for interval in trace.down:
            plot.axvspan(
                interval.start,
                max(interval.end, interval.start + axis.span * 0.004),
                facecolor=COLOURS[interval.track],
                alpha=0.14,
                linewidth=0,
            )

    return Panel(
        "errors",
        title,
        "; ".join([summary, *down]) + ".",
        draw_figure(
            draw,
            axis=axis,
            heights=[100],
            prefix=f"{prefix}-errors",
            title=title,
            description="; ".join([summary, *down]),
        ),
        f"Failures in windows of {width:.0f} s, {story.words[0]} left, {story.words[1]} right in each window; one request may be counted by "
        "the gateway and by the engine." + (" Shaded: an instance did not answer." if down else ""),
        table,
        tracks=True,
    )


def _failure_table(
    story: Watched, trace: Trace, names: dict[str, str], failures: dict[str, dict[str, Array]]
) -> DataTable:
    found = requests_by_track(trace)
    rows = []
    for track in TRACKS:
        requests = 0
        if found is not None and track in found[1]:
            requests = int(found[1][track][1].sum())
        for label, values in failures[track].items():
            count = int(values.sum())
            ratio = "–"
            if requests:
                low, high = proportion_interval(min(count, requests), requests)
                ratio = f"{100 * count / requests:.2f}% ({100 * low:.2f} to {100 * high:.2f}%)"
            rows.append((names[track], label, f"{count:,}", f"{requests:,}", ratio))
    return DataTable(("track", "failure", "count", "requests", "share (95% interval)"), tuple(rows))


def proportion_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a share; (0, 1) where nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - tail, count + 1, total - count))
    return low, high
