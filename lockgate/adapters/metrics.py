"""Reads what vLLM and Envoy say about themselves, as lines of a canary's trace.

A target that refuses the connection, or whose process is known to be gone, is down (`up: false`). One that hangs, or answers
nonsense, leaves no line: nothing is known about it, and the judge sees an outage of metrics, not a crash. A value that is not
a finite number >= 0, or a histogram that is none, is left out and named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lockgate.domain.trace import Histogram, RequestRow, Scrape, Track, proper_histogram, usable
from lockgate.errors import MetricsError

ENGINE_PREFIXES = ("vllm:", "http_requests_total", "process_start_time_seconds")
GATEWAY_SAMPLES = (
    "upstream_rq_total",
    "upstream_rq_xx",
    "upstream_rq_completed",
    "upstream_rq_active",
    "upstream_rq_cancelled",
    "upstream_rq_rx_reset",
    "upstream_rq_tx_reset",
    "upstream_rq_timeout",
    "upstream_rq_pending_failure_eject",
    "upstream_cx_connect_fail",
    "upstream_cx_connect_timeout",
    "upstream_cx_none_healthy",
    "membership_healthy",
)
_IRRELEVANT_LABELS = frozenset({"engine", "model_name", "envoy_cluster_name"})
"""The same on both tracks by design, or named by the instance."""
_LARGEST_BODY = 16 * 1024 * 1024


@dataclass(frozen=True)
class ScrapeTarget:
    """One metrics endpoint. `cluster` is set for the gateway: Envoy's cluster of the slot."""

    instance: str
    slot: str
    url: str | None
    """None: there is no process to ask, and it is known to be so."""
    cluster: str | None = None


def scrape(
    targets: Sequence[ScrapeTarget],
    tracks: Mapping[str, Track],
    *,
    time: float,
    timeout_seconds: float = 2.0,
) -> list[Scrape]:
    """One look at all targets at once, in order; `tracks` says by slot which track a target is of (others are left out).

    `time` (seconds, any one clock) stamps all of them. Never raises for a target's fault, and takes at most about
    `timeout_seconds` however many targets hang.
    """
    wanted = [target for target in targets if target.slot in tracks]
    if not wanted:
        return []
    with (
        httpx.Client(timeout=timeout_seconds, trust_env=False) as client,
        ThreadPoolExecutor(max_workers=len(wanted)) as pool,
    ):
        looks = pool.map(lambda t: _look(client, t, tracks[t.slot], time, timeout_seconds), wanted)
        return [found for found in looks if found is not None]


def _look(
    client: httpx.Client, target: ScrapeTarget, track: Track, time: float, timeout_seconds: float
) -> Scrape | None:
    if target.url is None:
        return Scrape(time, track, target.instance, up=False)
    try:
        text = _read(client, target.url, timeout_seconds)
    except httpx.ConnectError:
        return Scrape(time, track, target.instance, up=False)
    except (httpx.HTTPError, MetricsError):
        return None
    try:
        counters, histograms, gauges, invalid = parse_metrics(text, cluster=target.cluster)
    except MetricsError:
        return None
    return Scrape(time, track, target.instance, True, counters, histograms, gauges, invalid)


def _read(client: httpx.Client, url: str, timeout_seconds: float) -> str:
    """The body, within a total time: an endpoint that drips bytes would pass every timeout between two of them."""
    import time as clock

    deadline = clock.monotonic() + timeout_seconds
    body = bytearray()
    with client.stream("GET", url) as response:
        if response.status_code != 200:
            raise MetricsError(f"{url} answered {response.status_code}")
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _LARGEST_BODY or clock.monotonic() > deadline:
                raise MetricsError(f"{url} sends too much or too slowly")
    return body.decode(errors="replace")


def parse_metrics(
    text: str, *, cluster: str | None = None
) -> tuple[dict[str, float], dict[str, Histogram], dict[str, float], tuple[str, ...]]:
    """Counters, histograms, gauges and the names of unusable samples in Prometheus' text format.

    With `cluster`: Envoy's statistics of that cluster; else those of an engine. Samples that differ only in labels without
    meaning here (engine rank, model name) are added up. `MetricsError` if it is not the text format, or nothing of what was
    looked for is in it.
    """
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    sums: dict[str, float] = {}
    invalid: set[str] = set()
    try:
        for kind, name, labels, value in _samples(text, cluster):
            if kind == "histogram":
                base, part = name.rsplit("_", 1)
                key = _key(base, labels, without=("le",))
                if not usable(value):
                    invalid.add(key)
                elif part == "bucket":
                    bounds = buckets.setdefault(key, {})
                    bound = float(labels["le"])
                    bounds[bound] = bounds.get(bound, 0.0) + value
                elif part == "sum":
                    sums[key] = sums.get(key, 0.0) + value
                continue
            key = _key(name, labels)
            if not usable(value):
                invalid.add(key)
            else:
                into = counters if kind == "counter" else gauges
                into[key] = into.get(key, 0.0) + value
    except (ValueError, LookupError) as error:
        raise MetricsError(f"not Prometheus' text format: {error!r}") from error
    histograms = {}
    for key, bounds in buckets.items():
        le = tuple(sorted(bounds))
        found = proper_histogram(le, [bounds[b] for b in le], sums.get(key, math.nan))
        if key in invalid or found is None:
            invalid.add(key)
        else:
            histograms[key] = found
    for key in invalid:
        # What is left of a sum of which a part is no number is no number either.
        counters.pop(key, None)
        gauges.pop(key, None)
    if not counters and not histograms and not gauges and not invalid:
        raise MetricsError("none of the expected metrics is there")
    return counters, histograms, gauges, tuple(sorted(invalid))


def _samples(text: str, cluster: str | None) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
    """Kind, name, labels and value of the samples that matter."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name, labels = sample.name, sample.labels
            if name.endswith(("_created", "_info")):
                continue
            if cluster is None:
                if not name.startswith(ENGINE_PREFIXES):
                    continue
            else:
                # The parser gives every counter the ending `_total`; most of Envoy's have none.
                if not _of_gateway(name):
                    name = name.removesuffix("_total")
                if labels.get("envoy_cluster_name") != cluster or not _of_gateway(name):
                    continue
            if family.type in ("counter", "gauge", "histogram"):
                yield family.type, name, labels, sample.value


def _of_gateway(name: str) -> bool:
    return name.removeprefix("envoy_cluster_") in GATEWAY_SAMPLES


def _key(name: str, labels: Mapping[str, str], without: Iterable[str] = ()) -> str:
    left_out = _IRRELEVANT_LABELS.union(without)
    kept = sorted((k, v) for k, v in labels.items() if k not in left_out)
    if not kept:
        return name
    return name + "{" + ",".join(f'{k}="{v}"' for k, v in kept) + "}"


def gateway_url(admin_url: str, cluster: str) -> str:
    """Where Envoy's admin interface tells about one cluster."""
    names = "|".join(GATEWAY_SAMPLES)
    # Code classes are a tag of the metric, but part of the name that Envoy filters by.
    pattern = (
        rf"^cluster\.{re.escape(cluster)}\.({names.replace('upstream_rq_xx', 'upstream_rq_.xx')})$"
    )
    return str(httpx.URL(f"{admin_url}/stats/prometheus", params={"filter": pattern}))


class AccessLogReader:
    """Follows the gateway's access log (JSON lines) from where it was last read."""

    def __init__(self, path: Path, *, model: str, offset: int = 0) -> None:
        self._path = path
        self._model = model
        self.offset = offset
        """Bytes read so far: give it to the next reader to go on there."""

    def read(self, tracks: Mapping[str, Track]) -> list[RequestRow]:
        """Requests finished since the last call that a track's slot answered, or was forced to answer by nobody.

        A line that is not yet whole is left for the next call. A log that became shorter is read from its beginning.
        """
        try:
            with self._path.open("rb") as log:
                size = log.seek(0, 2)
                log.seek(self.offset if self.offset <= size else 0)
                content = log.read()
                end = log.tell()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise MetricsError(f"the access log {self._path} cannot be read: {error}") from error
        whole = content.rfind(b"\n") + 1
        self.offset = end - len(content) + whole
        rows = (self._row(line, tracks) for line in content[:whole].splitlines())
        return [row for row in rows if row is not None]

    def _row(self, line: bytes, tracks: Mapping[str, Track]) -> RequestRow | None:
        try:
            data = json.loads(line)
            cluster = data.get("cluster") or ""
            model, _, slot = cluster.rpartition("-")
            slot = data.get("slot") or slot
            if model != self._model or slot not in tracks or data.get("forced"):
                return None
            return RequestRow(
                time=float(data["time"]),
                track=tracks[slot],
                instance=f"gateway-{slot}",
                status=int(data["status"]),
                ttfb=_seconds(data.get("ttfb_us")),
                duration=_seconds(data.get("duration_us")),
                bytes_in=_number(data.get("bytes_in")),
                bytes_out=_number(data.get("bytes_out")),
            )
        except (ValueError, LookupError, TypeError):
            return None


def _seconds(value: Any) -> float | None:
    number = _number(value)
    return number / 1e6 if number is not None else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
