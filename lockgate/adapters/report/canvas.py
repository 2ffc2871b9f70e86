"""How figures look, and the one time axis that all figures of a release share.

Every figure is drawn twice, for a wide page and for a phone, with text of the same size; left and right margins are the same
in all figures of a width, so that the same moment stands below the same moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from lockgate.adapters.report.svg import inline_svg

# Blue and vermillion of Okabe and Ito: apart for every kind of colour vision, and apart in grey.
STABLE = "#0072B2"
CANARY = "#C85200"
INK = "#1c2430"
MUTED = "#5a6673"
GRID = "#e4e8ec"
RULE = "#b4bec8"
PASS = "#00735c"
FAIL = "#b3261e"
OUTAGE = "#6a3d9a"
UNDECIDED = "#d5dbe1"

WIDE = 780
NARROW = 350
_MARGINS = {WIDE: (58, 16), NARROW: (46, 10)}
_DOTS_PER_INCH = 72
_STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "text.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "lockgate",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 4,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.8,
}
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class TimeAxis:
    """Seconds since the epoch, shown as time since `origin`."""

    origin: float
    end: float
    marks: tuple[float, ...] = ()
    """Transitions, numbered from 1 in the figures and in the table of transitions."""

    @property
    def span(self) -> float:
        return max(self.end - self.origin, 1.0)

    def clock(self, time: float) -> str:
        """`m:ss`, or `h:mm:ss` from an hour on."""
        seconds = round(time - self.origin)
        sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
        hours, rest = divmod(seconds, 3600)
        minutes, seconds = divmod(rest, 60)
        return (
            f"{sign}{hours}:{minutes:02}:{seconds:02}" if hours else f"{sign}{minutes}:{seconds:02}"
        )

    @property
    def label(self) -> str:
        started = datetime.fromtimestamp(self.origin, UTC).strftime("%H:%M:%S")
        unit = "h:min:s" if self.span >= 3600 else "min:s"
        return f"{unit} since {started} UTC"

    def ticks(self, about: int) -> list[float]:
        step = next((s for s in _STEPS if self.span / s <= about), _STEPS[-1])
        return [self.origin + i * step for i in range(int(self.span // step) + 1)]


Draw = Callable[[Sequence[Axes], bool], None]
"""Draws on the axes, top to bottom; the flag says that the page is narrow."""


@dataclass(frozen=True)
class Drawing:
    """A figure for a wide page and for a phone."""

    wide: Markup
    narrow: Markup


def draw_figure(
    draw: Draw,
    *,
    axis: TimeAxis | None,
    heights: Sequence[int],
    prefix: str,
    title: str,
    description: str,
    gap: int = 26,
    legend_rows: int = 0,
) -> Drawing:
    """Axes of `heights` pixels above each other on the one time axis (without `axis`: on none), drawn for both widths.

    `legend_rows` leaves room above the first axes for a legend: so many rows on a phone, a third on a wide page.
    """
    pictures = []
    for width in (WIDE, NARROW):
        name = f"{prefix}-{'wide' if width == WIDE else 'narrow'}"
        with mpl.rc_context(_STYLE):
            rows = legend_rows if width == NARROW else -(-legend_rows // 3)
            figure, axes = _axes(width, heights, gap, top=16 + (8 + 16 * rows if rows else 0))
            if axis is not None:
                for each in axes:
                    _time_axis(each, axis, 10 if width == WIDE else 5)
            draw(axes, width == NARROW)
            if axis is not None:
                axes[-1].set_xlabel(axis.label, fontsize=10)
            pictures.append(inline_svg(figure, prefix=name, title=title, description=description))
    return Drawing(*pictures)


def _axes(width: int, heights: Sequence[int], gap: int, top: int) -> tuple[Figure, list[Axes]]:
    left, right = _MARGINS[width]
    bottom = 40
    total = top + bottom + sum(heights) + gap * (len(heights) - 1)
    figure = Figure(figsize=(width / _DOTS_PER_INCH, total / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
    axes = []
    y = total - top
    for height in heights:
        y -= height
        axes.append(
            figure.add_axes(
                (left / width, y / total, (width - left - right) / width, height / total)
            )
        )
        y -= gap
    return figure, axes


def _time_axis(axes: Axes, axis: TimeAxis, about: int) -> None:
    axes.set_xlim(axis.origin, axis.origin + axis.span)
    axes.xaxis.set_major_locator(FixedLocator(axis.ticks(about)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: axis.clock(x)))
    for mark in axis.marks:
        axes.axvline(mark, color=RULE, linewidth=1, linestyle=(0, (2, 2)), zorder=0.5)


def few_ticks(axes: Axes, highest: float, *, about: int = 4) -> None:
    """A y axis from 0 with few round ticks."""
    highest = highest if highest > 0 else 1.0
    raw = highest / about
    magnitude = 10 ** np.floor(np.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    axes.set_ylim(0, highest)
    axes.yaxis.set_major_locator(FixedLocator(list(np.arange(0, highest * 1.001, step))))


def corner_label(axes: Axes, text: str) -> None:
    """Name of a panel, above its left end."""
    axes.text(
        0,
        1.02,
        text,
        transform=axes.transAxes,
        fontsize=11,
        color=INK,
        fontweight="bold",
        va="bottom",
    )
