"""From what `vllm bench serve` saved to a profile's result, counted from the time at which each request was due."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.domain.evidence import BlockFigures, LoadPoint, ProfileResult
from lockgate.domain.load import BenchmarkProfile, PlannedRequest, ServiceLevel
from lockgate.errors import BenchmarkError

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Timed:
    """One request that was answered in full. Seconds; ttft and e2e from the time it was due."""

    ttft: float
    e2e: float
    gaps: tuple[float, ...]
    """Between the pieces of the answer."""
    prompt_tokens: int
    output_tokens: int
    lag: float
    """How late it was sent."""

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None where there is no second."""
        if self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    def keeps(self, level: ServiceLevel) -> bool:
        measured = (
            (self.ttft, level.ttft_ms),
            (self.tpot or 0.0, level.tpot_ms),
            (self.e2e, level.e2e_ms),
        )
        return all(bound is None or 1000 * value <= bound for value, bound in measured)


@dataclass(frozen=True)
class Load:
    """What came of one planned load. The requests answered, in the order sent."""

    answered: tuple[Timed, ...]
    failed: int
    seconds: float

    def figures(self, level: ServiceLevel | None) -> BlockFigures:
        """Summed up as one side of a pair of blocks."""
        per_token = [r.tpot for r in self.answered if r.tpot is not None]
        return BlockFigures(
            completed=len(self.answered),
            failed=self.failed,
            ttft=1000 * float(np.median([r.ttft for r in self.answered]))
            if self.answered
            else None,
            tpot=1000 * float(np.median(per_token)) if per_token else None,
            e2e=1000 * float(np.mean([r.e2e for r in self.answered])) if self.answered else None,
            throughput=self._rate(sum(r.output_tokens for r in self.answered)),
            kept_service_level=self._kept(level),
        )

    def point(self, profile: BenchmarkProfile, level: ServiceLevel | None) -> LoadPoint:
        """As one level of a sweep."""
        result = self.result(profile, level)
        return LoadPoint(
            level=profile.rate if profile.rate is not None else profile.concurrency,
            unit="rate" if profile.rate is not None else "concurrency",
            completed=result.completed,
            failed=result.failed,
            requests_per_second=result.requests_per_second,
            output_tokens_per_second=result.output_tokens_per_second,
            prompt_tokens_per_second=result.prompt_tokens_per_second or 0.0,
            ttft_ms=result.ttft_ms,
            tpot_ms=result.tpot_ms,
            e2e_ms=result.e2e_ms,
            kept_service_level=result.kept_service_level,
            goodput_per_second=result.goodput_per_second,
        )

    def result(self, profile: BenchmarkProfile, level: ServiceLevel | None) -> ProfileResult:
        """As the result of a whole profile."""
        rows = self.answered
        kept = self._kept(level)
        requests = {
            "ttft_ms": [r.ttft for r in rows],
            "tpot_ms": [r.tpot for r in rows if r.tpot is not None],
            "itl_max_ms": [max(r.gaps) for r in rows if r.gaps],
            "e2e_ms": [r.e2e for r in rows],
        }
        lags = [r.lag for r in rows]
        return ProfileResult(
            profile=profile.name,
            completed=len(rows),
            failed=self.failed,
            duration_seconds=self.seconds,
            output_tokens_per_second=self._rate(sum(r.output_tokens for r in rows)),
            requests_per_second=self._rate(len(rows)),
            prompt_tokens_per_second=self._rate(sum(r.prompt_tokens for r in rows)),
            ttft_ms=_summary(requests["ttft_ms"]),
            tpot_ms=_summary(requests["tpot_ms"]),
            itl_ms=_summary([gap for r in rows for gap in r.gaps]),
            e2e_ms=_summary(requests["e2e_ms"]),
            requests={
                name: tuple(round(1000 * v, 3) for v in values) for name, values in requests.items()
            },
            kept_service_level=kept,
            goodput_per_second=None if kept is None else self._rate(kept),
            send_lag_p99_ms=_summary(lags).get("p99") if profile.open_loop else None,
        )

    def _kept(self, level: ServiceLevel | None) -> int | None:
        return None if level is None else sum(r.keeps(level) for r in self.answered)

    def _rate(self, count: float) -> float:
        return count / self.seconds


def together(loads: Sequence[Load]) -> Load:
    """Blocks that were sent one at a time as one load."""
    return Load(
        answered=tuple(r for load in loads for r in load.answered),
        failed=sum(load.failed for load in loads),
        seconds=sum(load.seconds for load in loads),
    )


def read_load(
    profile: BenchmarkProfile, plan: Sequence[PlannedRequest], raw: dict[str, Any], log: Path
) -> Load:
    """Every planned request is accounted for, answered or failed; an answer of another length than asked for is failed.

    Raises BenchmarkError if the generator's result is incomplete or holds something that is no finite number.
    """
    try:
        columns = ("start_times", "ttfts", "itls", "latencies", "output_lens", "errors")
        rows = list(zip(*(raw[name] for name in columns), strict=True))
        if len(rows) != len(plan):
            raise ValueError(f"{len(rows)} of {len(plan)} requests are accounted for")
        lags = _lags([row[0] for row in rows], plan) if profile.open_loop else [0.0] * len(plan)
        answered = []
        for request, lag, (_, first, gaps, whole, tokens, error) in zip(
            plan, lags, rows, strict=True
        ):
            if error or tokens != request.output_tokens:
                continue
            answered.append(
                Timed(
                    ttft=_seconds(first) + lag,
                    e2e=_seconds(whole) + lag,
                    gaps=tuple(_seconds(gap) for gap in gaps),
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=request.output_tokens,
                    lag=lag,
                )
            )
        duration = _seconds(raw["duration"])
        if duration == 0:
            raise ValueError("it took no time")
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"the result of load profile {profile.name} is incomplete: {error}", log=log
        ) from error
    return Load(tuple(answered), len(plan) - len(answered), duration)


def _lags(started: Sequence[float], plan: Sequence[PlannedRequest]) -> list[float]:
    """How late each request was sent, against the promptest of them: the generator does not say when it began."""
    offsets = [_seconds(at) - request.at for at, request in zip(started, plan, strict=True)]
    return [offset - min(offsets) for offset in offsets]


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{value} is no time")
    return seconds


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds; empty where there is nothing to sum up."""
    if not seconds:
        return {}
    values = 1000 * np.asarray(seconds, dtype=np.float64)
    shares = {f"p{q}": float(np.percentile(values, q)) for q in _PERCENTILES}
    return {"mean": float(values.mean()), **shares}
