"""The trace of a canary: what was scraped from both tracks, one JSON object a line.

    {"time": 12.0, "track": "canary", "instance": "b-0", "up": true,
     "counters": {"vllm:request_success_total{finished_reason=\"stop\"}": 41},
     "histograms": {"vllm:time_to_first_token_seconds":
                    {"le": [0.1, 0.5, "+Inf"], "cumulative": [12, 40, 41], "sum": 7.9}},
     "gauges": {"vllm:num_requests_running": 2}}

or, from a gateway's access log, one request a line:

    {"time": 12.3, "track": "canary", "instance": "b-0",
     "request": {"status": 200, "ttfb": 0.21, "duration": 1.4, "bytes_in": 210, "bytes_out": 900}}

Times are seconds on one clock. Counters and histograms are cumulative since the instance started.
`up` false means that the instance is known to be dead or unreachable; a scrape that merely failed
must leave no line (its absence is then seen as an outage, not as a crash).

A value that is not a finite number >= 0, or larger than any count can be, is not evidence: it is dropped and named in
`invalid`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lockgate.errors import UsageError

Track = Literal["baseline", "canary"]
TRACKS: tuple[Track, Track] = ("baseline", "canary")


LARGEST = 2.0**53
"""Beyond it a float does not count by ones any more."""

SMALLEST = 1e-12
"""Below it, and not zero, no server means what it says: squares and quotients of such values leave the range of a float."""


COUNTED_HERE = "lockgate:"
"""Samples that the driver counts itself, by its own clock: they say nothing about anybody's metrics."""


class TraceError(UsageError, ValueError):
    """A line of a trace is not in the format; the judge cannot tell what it would have said."""


@dataclass(frozen=True)
class Histogram:
    """A cumulative histogram: upper bounds (last one +inf), counts up to each, sum of the values."""

    le: tuple[float, ...]
    cumulative: tuple[float, ...]
    sum: float


@dataclass(frozen=True)
class Scrape:
    """What one instance's metrics endpoint said at one moment."""

    time: float
    track: Track
    instance: str
    up: bool
    counters: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    invalid: tuple[str, ...] = ()
    """Samples that were present but no number that may be one, or no proper histogram."""

    @property
    def scraped(self) -> bool:
        """Whether an endpoint answered: not that it is known to be dead, nor what the driver has counted itself."""
        samples = itertools.chain(self.counters, self.histograms, self.gauges, self.invalid)
        return self.up and any(not name.startswith(COUNTED_HERE) for name in samples)


@dataclass(frozen=True)
class RequestRow:
    """One finished request as the gateway logged it; times in seconds, None where unknown."""

    time: float
    track: Track
    instance: str
    status: int
    ttfb: float | None = None
    duration: float | None = None
    bytes_in: float | None = None
    bytes_out: float | None = None


def usable(value: float) -> bool:
    """Whether a sample may have this value."""
    return value == 0 or SMALLEST <= value <= LARGEST


def proper_histogram(
    le: Sequence[float], cumulative: Sequence[float], total: float
) -> Histogram | None:
    """None where it is no proper one: rising, usable bounds (or their negatives) that end in +Inf, usable counts that never fall."""
    if not le or len(le) != len(cumulative) or le[-1] != math.inf:
        return None
    if not all(usable(abs(bound)) for bound in le[:-1]):
        return None
    rising = all(a < b for a, b in itertools.pairwise(le))
    monotone = all(a <= b for a, b in itertools.pairwise(cumulative))
    if not rising or not monotone or not all(map(usable, (*cumulative, total))):
        return None
    return Histogram(tuple(le), tuple(cumulative), total)


def _number(value: Any) -> float | None:
    """A usable number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if usable(value) else None


def _histogram(data: Any) -> Histogram | None:
    """A proper histogram, or None."""
    if not isinstance(data, Mapping):
        return None
    le_raw, cumulative_raw = data.get("le"), data.get("cumulative")
    if not isinstance(le_raw, list) or not isinstance(cumulative_raw, list):
        return None
    try:
        bounds = [float(raw) for raw in le_raw]
    except (TypeError, ValueError, OverflowError):
        return None
    counts = [_number(c) for c in cumulative_raw]
    total = _number(data.get("sum"))
    if total is None or any(c is None for c in counts):
        return None
    return proper_histogram(bounds, [c for c in counts if c is not None], total)


def parse_record(data: Any) -> Scrape | RequestRow:
    """The typed form of one decoded line. Raises TraceError where its frame is not as documented."""
    if not isinstance(data, Mapping):
        raise TraceError(f"a trace line must be a JSON object, not {type(data).__name__}")
    time = data.get("time")
    if isinstance(time, bool) or not isinstance(time, int | float) or not abs(time) <= LARGEST:
        raise TraceError(f"a trace line needs a finite `time`, got {time!r}")
    track = data.get("track")
    if track not in TRACKS:
        raise TraceError(f"`track` must be baseline or canary, got {track!r}")
    instance = data.get("instance")
    if not isinstance(instance, str) or not instance:
        raise TraceError(f"`instance` must be a non-empty string, got {instance!r}")
    if "request" in data:
        return _request(float(time), track, instance, data["request"])
    up = data.get("up")
    if not isinstance(up, bool):
        raise TraceError(f"`up` must be true or false, got {up!r}")
    invalid: list[str] = []
    numbers: dict[str, dict[str, float]] = {"counters": {}, "gauges": {}}
    for part, found in numbers.items():
        values = data.get(part) or {}
        if not isinstance(values, Mapping):
            raise TraceError(f"`{part}` must be an object")
        for name, value in values.items():
            number = _number(value)
            if number is None:
                invalid.append(name)
            else:
                found[name] = number
    histograms: dict[str, Histogram] = {}
    raw = data.get("histograms") or {}
    if not isinstance(raw, Mapping):
        raise TraceError("`histograms` must be an object")
    for name, value in raw.items():
        histogram = _histogram(value)
        if histogram is None:
            invalid.append(name)
        else:
            histograms[name] = histogram
    return Scrape(
        float(time),
        track,
        instance,
        up,
        numbers["counters"],
        histograms,
        numbers["gauges"],
        tuple(invalid),
    )


def _request(time: float, track: Track, instance: str, data: Any) -> RequestRow:
    if not isinstance(data, Mapping):
        raise TraceError("`request` must be an object")
    status = data.get("status")
    if isinstance(status, bool) or not isinstance(status, int):
        raise TraceError(f"a request row needs an integer `status`, got {status!r}")
    return RequestRow(
        time,
        track,
        instance,
        status,
        *(_number(data.get(key)) for key in ("ttfb", "duration", "bytes_in", "bytes_out")),
    )


def parse_line(line: str) -> Scrape | RequestRow:
    """One line of a trace. Raises TraceError on anything that is not in the format."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"a trace line is not JSON: {line[:120]!r}") from error
    return parse_record(data)


def to_line(record: Scrape | RequestRow) -> str:
    """The line that `parse_line` reads back as an equal record (`invalid` values as null)."""
    if isinstance(record, RequestRow):
        request = {
            key: getattr(record, key)
            for key in ("status", "ttfb", "duration", "bytes_in", "bytes_out")
            if getattr(record, key) is not None
        }
        frame = {"time": record.time, "track": record.track, "instance": record.instance}
        return json.dumps({**frame, "request": request}, separators=(",", ":"))
    data = {
        "time": record.time,
        "track": record.track,
        "instance": record.instance,
        "up": record.up,
        "counters": dict(record.counters) | dict.fromkeys(record.invalid),
        "histograms": {
            name: {
                "le": ["+Inf" if math.isinf(b) else b for b in h.le],
                "cumulative": list(h.cumulative),
                "sum": h.sum,
            }
            for name, h in record.histograms.items()
        },
        "gauges": dict(record.gauges),
    }
    return json.dumps(data, separators=(",", ":"))
