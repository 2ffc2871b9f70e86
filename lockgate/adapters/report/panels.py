"""What was measured while a canary ran: weight, latencies, errors and requests, each as a figure with its facts in words.

A panel without data has no picture: it says what is missing. The description of a picture carries its figures, so that a
reader who cannot see it learns the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from lockgate.adapters.report import canvas
from lockgate.adapters.report.canvas import Drawing, TimeAxis, corner_label, draw_figure, few_ticks
from lockgate.adapters.report.model import Watched
from lockgate.adapters.report.traces import BASELINE, CANARY, TRACKS, Trace
from lockgate.adapters.report.windows import (
    MIN_OBSERVATIONS,
    Array,
    QuantileBand,
    quantile_band,
    window_edges,
)
from lockgate.adapters.report.wording import number
from lockgate.domain.release_state import Slot

COLOURS = {BASELINE: canvas.STABLE, CANARY: canvas.CANARY}
_LINES = {BASELINE: ("-", "o"), CANARY: ("-", "D")}
QUANTILES = (0.5, 0.9)


@dataclass(frozen=True)
class DataTable:
    """The numbers behind a picture."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Panel:
    key: str
    title: str
    summary: str
    """What there is to see, in words and figures; where there is no picture, why."""
    drawing: Drawing | None = None
    reading: str = ""
    """How to read the picture."""
    table: DataTable | None = None
    tracks: bool = False
    """Whether stable and canary are drawn beside each other: then the picture needs their legend."""


def track_names(story: Watched) -> dict[str, str]:
    """`stable (slot a)` and `canary (slot b)`, or what they are in a bake, as far as the slots are known."""
    slots = {BASELINE: story.stable_slot, CANARY: story.canary_slot}
    words = dict(zip(TRACKS, story.words, strict=True))
    if slots[BASELINE] is Slot.BASELINE:
        words[BASELINE], slots[BASELINE] = "fresh baseline of stable", None
    return {
        t: f"{words[t]} (slot {slot.value})" if slot is not None else words[t]
        for t, slot in slots.items()
    }


def time_axis(story: Watched, trace: Trace) -> TimeAxis | None:
    """From the first to the last thing known about it; None where nothing is."""
    times = [t.time.timestamp() for t in story.transitions] + [
        look.time for look in story.looks if look.time is not None
    ]
    times += [t for t in (trace.start, trace.end) if t is not None]
    if not times:
        return None
    origin, end = min(times), max(times)
    return TimeAxis(
        origin=origin,
        # Room after the last transition, so that the state it led to can be seen.
        end=end + max((end - origin) * 0.02, 1.0),
        marks=tuple(t.time.timestamp() for t in story.transitions),
    )


def weight_panel(story: Watched, axis: TimeAxis, prefix: str) -> Panel:
    title = "Weight of the candidate"
    if not story.transitions:
        return Panel("weight", title, "No transition was recorded: the candidate never had weight.")
    times = [t.time.timestamp() for t in story.transitions]
    weights = [t.weight for t in story.transitions]
    told = "; ".join(
        f"{index}: {axis.clock(time)} {t.phase.value.replace('_', ' ')} at {t.weight}%"
        for index, (time, t) in enumerate(zip(times, story.transitions, strict=True), start=1)
    )

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        plot = axes[0]
        x, y = [*times, axis.end], [*weights, weights[-1]]
        plot.fill_between(x, y, step="post", color=canvas.CANARY, alpha=0.12, linewidth=0)
        plot.step(x, y, where="post", color=canvas.CANARY, linewidth=2)
        plot.set_ylim(0, 112)
        plot.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        plot.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}%"))
        per_pixel = axis.span / ((canvas.NARROW if narrow else canvas.WIDE) - 70)
        taken: list[float] = []
        for index, time in enumerate(times, start=1):
            # Numbers that would touch step aside to the right.
            place = max([time, *(t + 15 * per_pixel for t in taken[-1:])])
            taken.append(place)
            plot.annotate(
                str(index),
                (place, 112),
                annotation_clip=False,
                ha="center",
                va="center",
                fontsize=9,
                color="white",
                fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.25", "facecolor": canvas.MUTED, "linewidth": 0},
            )
        for start, end, weight in zip(x[:-1], x[1:], weights, strict=True):
            if weight and (end - start) / per_pixel > 44:
                below = weight > 85
                plot.annotate(
                    f"{weight}%",
                    ((start + end) / 2, weight),
                    xytext=(0, -5 if below else 4),
                    textcoords="offset points",
                    ha="center",
                    va="top" if below else "bottom",
                    fontsize=10,
                    color=canvas.CANARY,
                    fontweight="bold",
                )

    return Panel(
        "weight",
        title,
        f"{len(times)} transitions, highest weight {max(weights)}%.",
        draw_figure(
            draw, axis=axis, heights=[110], prefix=f"{prefix}-weight", title=title, description=told
        ),
        "Percent of the requests that the committed route sends to the candidate's slot. Numbers and dotted lines are the "
        "transitions of the table below, in every figure.",
    )


def latency_panel(
    story: Watched,
    trace: Trace,
    axis: TimeAxis,
    prefix: str,
    *,
    key: str,
    title: str,
    name: str,
) -> Panel:
    """p50 and p90 of one latency histogram, stable and canary, window by window."""
    histograms = {t: h for t in TRACKS if (h := trace.histogram(t, name)) is not None}
    if not histograms:
        return Panel(key, title, f"No data: the trace holds no observation of {name}.")
    edges = window_edges(axis.origin, axis.end)
    bands = {(t, q): quantile_band(h, edges, q) for t, h in histograms.items() for q in QUANTILES}
    known = [b.value[~np.isnan(b.value)] for b in bands.values()]
    if not any(len(k) for k in known):
        return Panel(
            key, title, f"Too few data: no window holds {MIN_OBSERVATIONS} observations of {name}."
        )
    names = track_names(story)
    highest_value = max(float(k.max()) for k in known if len(k))
    scale, unit = (1000.0, "ms") if highest_value < 2 else (1.0, "s")
    words = [_latency_words(names[t], bands, t, scale, unit) for t in histograms]
    words += [f"{names[t]}: no observation" for t in TRACKS if t not in histograms]

    def draw(axes: Sequence[Axes], narrow: bool) -> None:
        for plot, quantile in zip(axes, reversed(QUANTILES), strict=True):
            corner_label(plot, f"p{quantile * 100:.0f}, {unit}")
            top = 0.0
            for track in histograms:
                band = bands[track, quantile]
                line, marker = _LINES[track]
                colour = COLOURS[track]
                plot.fill_between(
                    band.middles,
                    band.lower * scale,
                    band.upper * scale,
                    color=colour,
                    alpha=0.16,
                    linewidth=0,
                )
                plot.plot(
                    band.middles,
                    band.value * scale,
                    line,
                    color=colour,
                    marker=marker,
                    markersize=3.5 if narrow else 4.5,
                    linewidth=1.8,
                )
                if not np.isnan(band.value).all():
                    # A band that runs far out of the picture must not flatten the lines.
                    wide = min(np.nanmax(band.upper), np.nanmax(band.value) * 1.5)
                    top = max(top, float(wide) * scale)
            few_ticks(plot, top * 1.08)

    reading = (
        f"Quantile of the requests' increments in windows of {edges[1] - edges[0]:.0f} s, linear within vLLM's buckets; a "
        f"window with fewer than {MIN_OBSERVATIONS} observations is left out. Bands: 95% interval of each window alone, "
        "from the number of observations and the variation from scrape to scrape."
    )
    if any(b.beyond for b in bands.values()):
        bound = max(h.bounds[-2] for h in histograms.values()) * scale
        reading += f" Values above the last bucket bound ({bound:g} {unit}) are drawn at it."
    return Panel(
        key,
        title,
        "; ".join(words) + ".",
        draw_figure(
            draw,
            axis=axis,
            heights=[118, 118],
            gap=42,
            prefix=f"{prefix}-{key}",
            title=title,
            description="; ".join(words),
        ),
        reading,
        _latency_table(axis, names, bands, edges, scale, unit),
        tracks=True,
    )


def _latency_words(
    name: str, bands: dict[tuple[str, float], QuantileBand], track: str, scale: float, unit: str
) -> str:
    parts = []
    for quantile in QUANTILES:
        values = bands[track, quantile].value
        values = values[~np.isnan(values)] * scale
        if len(values):
            low, high = values.min(), values.max()
            parts.append(f"p{quantile * 100:.0f} {number(low)} to {number(high)} {unit}")
    return f"{name}: " + (", ".join(parts) if parts else "too few observations in every window")


def _latency_table(
    axis: TimeAxis,
    names: dict[str, str],
    bands: dict[tuple[str, float], QuantileBand],
    edges: Array,
    scale: float,
    unit: str,
) -> DataTable:
    keys = sorted(bands, key=lambda k: (TRACKS.index(k[0]), k[1]))
    rows = []
    for window, start in enumerate(edges[:-1]):
        if all(bands[k].observations[window] == 0 for k in keys):
            continue
        cells = [f"{axis.clock(start)} to {axis.clock(edges[window + 1])}"]
        for key in keys:
            band = bands[key]
            if np.isnan(band.value[window]):
                cells.append(f"– (n = {band.observations[window]})")
            else:
                low, mid, high = (v[window] * scale for v in (band.lower, band.value, band.upper))
                cells.append(f"{number(mid)} ({number(low)} to {number(high)})")
        rows.append(tuple(cells))
    columns = tuple(f"{names[t]} p{q * 100:.0f}, {unit}" for t, q in keys)
    return DataTable(("window", *columns), tuple(rows))
