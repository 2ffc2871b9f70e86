"""Reads a canary's trace back from a Prometheus server, instead of scraping the endpoints itself.

Range vectors are asked for, not stepped ranges: they hold every sample as it was scraped, with the time
of the scrape, so the judge sees the same numbers as with scrapes of its own. A scrape that failed
(`up` 0) leaves no line, since Prometheus does not say whether the target was dead or only slow; a
restart shows in counters that fell and in the process start time. One without any of the samples that
matter leaves none either, as with a scrape of one's own.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lockgate.domain.trace import Histogram, Scrape, Track, proper_histogram, usable
from lockgate.errors import MetricsError, UsageError

_ENGINE = "vllm:.*|http_requests_total|process_start_time_seconds"
_GATEWAY = (
    "envoy_cluster_(upstream_rq_(total|xx|completed|active|cancelled|rx_reset|tx_reset|timeout|pending_failure_eject)"
    "|upstream_cx_(connect_fail|connect_timeout|none_healthy)|membership_healthy)"
)
_GATEWAY_GAUGES = ("_active", "_healthy")
_NO_SAMPLES = ("_created", "_info")
_IRRELEVANT_LABELS = frozenset(
    {"__name__", "engine", "model_name", "envoy_cluster_name", "namespace", "model", "slot"}
)
"""The same on both tracks by design, or what relabelling has made of the instance's or the cluster's name."""
_LONGEST_QUERY_S = 300.0


@dataclass(frozen=True)
class PrometheusTarget:
    """What of a Prometheus is one track's: all targets that have these labels. With `cluster`: the
    gateway, whose statistics of that Envoy cluster count for the track."""

    track: Track
    labels: Mapping[str, str]
    cluster: str | None = None
    named_by: str = "instance"
    """The label that instances are told apart by in the trace; `instance` where a target has no such label."""


@dataclass
class _Samples:
    """What one scrape of one target brought."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)


class PrometheusReader:
    """The scrapes that a Prometheus has stored of both tracks."""

    def __init__(
        self,
        url: str,
        targets: Sequence[PrometheusTarget],
        *,
        timeout_seconds: float = 10.0,
        ca: Path | None = None,
        token: str | None = None,
    ) -> None:
        """`ca`: PEM file of those who may have signed the server's certificate, in place of the usual ones; `token`: sent as a
        bearer token."""
        self._url = url.rstrip("/")
        self._shown = without_credentials(self._url)
        self._targets = targets
        self._timeout = timeout_seconds
        self._ca = ca
        self._token = token

    def read(self, start: float, end: float) -> list[Scrape]:
        """Scrapes made after `start` and until `end` (Unix seconds), in order of time.

        Raises:
            MetricsError: the server does not answer, or answers with an error, a warning or what is
            no sample: a trace with a hole in it decides nothing.
        """
        try:
            return self._read(start, end)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise MetricsError(
                f"Prometheus at {self._shown} answered in an unknown form: {error!r}"
            ) from error

    def _read(self, start: float, end: float) -> list[Scrape]:
        found: list[Scrape] = []
        headers, trusted = self._headers(), self._trusted()
        with httpx.Client(
            timeout=self._timeout, trust_env=False, verify=trusted, headers=headers
        ) as client:
            begin = start
            while begin < end:
                until = min(begin + _LONGEST_QUERY_S, end)
                for target in self._targets:
                    found += self._scrapes(client, target, begin, until)
                begin = until
        return sorted(found, key=lambda s: (s.time, s.track, s.instance))

    def _headers(self) -> dict[str, str]:
        if self._token is None:
            return {}
        if not self._token.isascii() or not self._token.isprintable():
            # Said here: the errors of who would send it hold all of it.
            raise MetricsError("the token for Prometheus has characters that no header may have")
        return {"Authorization": f"Bearer {self._token}"}

    def _trusted(self) -> ssl.SSLContext | bool:
        if self._ca is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(self._ca))
        except (OSError, ssl.SSLError) as error:
            raise MetricsError(
                f"the certificates {self._ca} of Prometheus cannot be read: {error}"
            ) from error

    def _scrapes(
        self, client: httpx.Client, target: PrometheusTarget, start: float, end: float
    ) -> Iterator[Scrape]:
        matchers = [f"{name}={_quoted(value)}" for name, value in target.labels.items()]
        own: dict[_Whose, frozenset[str]] = {}
        scrapes: dict[tuple[_Whose, float], _Samples] = {}
        for labels, values in self._range(client, "up", matchers, start, end):
            whose = _whose(labels, target)
            own[whose] = frozenset(labels)
            for time, up in values:
                if up == 1.0:
                    scrapes[whose, time] = _Samples()
        wanted = _ENGINE if target.cluster is None else _GATEWAY
        if target.cluster is not None:
            matchers.append(f"envoy_cluster_name={_quoted(target.cluster)}")
        named = [f"__name__=~{_quoted(wanted)}", *matchers]
        for labels, values in self._range(client, "", named, start, end):
            whose = _whose(labels, target)
            without = _IRRELEVANT_LABELS | own.get(whose, frozenset())
            for time, value in values:
                scrape = scrapes.get((whose, time))
                if scrape is not None:
                    _add(scrape, labels, without, value)
        for ((_, name), time), samples in scrapes.items():
            found = _scrape(
                samples, time, target.track,
                name if target.cluster is None else f"{name}/{target.cluster}",
            )  # fmt: skip
            if found.counters or found.histograms or found.gauges or found.invalid:
                yield found

    def _range(
        self, client: httpx.Client, metric: str, matchers: Iterable[str], start: float, end: float
    ) -> Iterator[tuple[Mapping[str, str], list[tuple[float, float]]]]:
        """Labels and (time, value) of every series' stored samples after `start` until `end`."""
        milliseconds = math.ceil((end - start) * 1000)
        query = f"{metric}{{{','.join(matchers)}}}[{milliseconds}ms]"
        data = {"query": query, "time": f"{end:.3f}"}
        try:
            response = client.post(f"{self._url}/api/v1/query", data=data)
            answer: Any = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise MetricsError(
                f"Prometheus at {self._shown} does not answer: {error!r}",
                hint="check the URL, and that the server is up",
            ) from error
        if not isinstance(answer, dict) or answer.get("status") != "success":
            said = answer.get("error") if isinstance(answer, dict) else None
            raise MetricsError(
                f"Prometheus at {self._shown} refused the query {query}: "
                f"{said or response.status_code}"
            )
        if answer.get("warnings"):
            raise MetricsError(f"Prometheus at {self._shown} warns: {answer['warnings']}")
        try:
            for series in answer["data"]["result"]:
                values = [(float(at), float(value)) for at, value in series["values"]]
                yield series["metric"], [(at, value) for at, value in values if start < at <= end]
        except (LookupError, TypeError, ValueError) as error:
            raise MetricsError(
                f"Prometheus at {self._shown} answered in an unknown form: {error!r}"
            ) from error


_Whose = tuple[str, str]
"""A target's address and its name: the address of a pod that is gone may be another's next."""


def _whose(labels: Mapping[str, str], target: PrometheusTarget) -> _Whose:
    instance = labels.get("instance", "")
    return instance, labels.get(target.named_by) or instance


def without_credentials(url: str) -> str:
    """As it may be shown. Raises `UsageError` for what is no URL."""
    try:
        return str(httpx.URL(url).copy_with(userinfo=b""))
    except httpx.InvalidURL as error:
        raise UsageError(f"the address of Prometheus is no URL: {error}") from error


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _add(
    scrape: _Samples, labels: Mapping[str, str], without: frozenset[str], value: float
) -> None:
    """Put one sample where it belongs; those that differ only in labels without meaning add up."""
    name = labels["__name__"]
    if name.endswith(_NO_SAMPLES):
        return
    base, _, part = name.rpartition("_")
    histogram = "le" in labels or part in ("sum", "count")
    key = _key(base if histogram else name, labels, without | {"le"})
    if not usable(value):
        scrape.invalid.add(key)
    elif "le" in labels:
        bounds = scrape.buckets.setdefault(key, {})
        bound = float(labels["le"])
        bounds[bound] = bounds.get(bound, 0.0) + value
    elif part == "sum":
        scrape.sums[key] = scrape.sums.get(key, 0.0) + value
    elif part != "count":
        gauge = not name.endswith("_total") and (
            not name.startswith("envoy_") or name.endswith(_GATEWAY_GAUGES)
        )
        into = scrape.gauges if gauge else scrape.counters
        into[key] = into.get(key, 0.0) + value


def _key(name: str, labels: Mapping[str, str], without: frozenset[str]) -> str:
    kept = sorted((k, v) for k, v in labels.items() if k not in without)
    return name + "{" + ",".join(f'{k}="{v}"' for k, v in kept) + "}" if kept else name


def _scrape(samples: _Samples, time: float, track: Track, instance: str) -> Scrape:
    histograms: dict[str, Histogram] = {}
    for key, bounds in samples.buckets.items():
        le = tuple(sorted(bounds))
        found = proper_histogram(le, [bounds[b] for b in le], samples.sums.get(key, math.nan))
        if key in samples.invalid or found is None:
            samples.invalid.add(key)
        else:
            histograms[key] = found
    for key in samples.invalid:
        # What is left of a sum of which a part is no number is no number either.
        samples.counters.pop(key, None)
        samples.gauges.pop(key, None)
    return Scrape(
        time, track, instance, True, samples.counters, histograms, samples.gauges,
        tuple(sorted(samples.invalid)),
    )  # fmt: skip
