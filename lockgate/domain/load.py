"""Loads as data: how requests arrive, and how long prompts and answers are; and the exact requests that follow from it.

A load is planned before it is sent: every request's intended time, lengths and prompt follow from the profile, the number of
the block and nothing else. So two candidates get the very same load, a later run gets it again, and latency can be counted
from the time at which a request should have been sent. No clock, no file: a recorded trace comes in as its text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest

SEED = 20_240

WARM_UP = -1
"""Number of the block that is sent first and not counted."""

Tokens = Annotated[int, Field(ge=1)]


class Lengths(Frozen):
    """Lengths in tokens, drawn anew for every request."""

    distribution: Literal["uniform", "lognormal", "empirical"]
    least: Tokens = 1
    """Shortest (uniform, and where a lognormal is cut off)."""
    most: Tokens | None = None
    """Longest (uniform, and where a lognormal is cut off)."""
    median: Annotated[float, Field(gt=0)] | None = None
    """Of a lognormal."""
    sigma: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of a lognormal's logarithm."""
    values: tuple[Tokens, ...] = ()
    """Of an empirical distribution: lengths as they were seen, each as likely as the others."""

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        needed = {
            "uniform": self.most is not None,
            "lognormal": None not in (self.median, self.sigma, self.most),
            "empirical": bool(self.values),
        }
        if not needed[self.distribution]:
            what = {"uniform": "most", "lognormal": "median, sigma and most", "empirical": "values"}
            raise ValueError(f"{self.distribution} lengths need {what[self.distribution]}")
        if self.most is not None and self.most < self.least:
            raise ValueError("`most` must not be below `least`")
        return self

    @property
    def mean(self) -> float:
        """Expected length; of a lognormal without regard to where it is cut off."""
        if self.distribution == "empirical":
            return sum(self.values) / len(self.values)
        assert self.most is not None
        if self.distribution == "uniform":
            return (self.least + self.most) / 2
        assert self.median is not None and self.sigma is not None
        return min(self.median * math.exp(self.sigma**2 / 2), float(self.most))

    def drawn(self, random: np.random.Generator, count: int) -> list[int]:
        if self.distribution == "empirical":
            return [int(v) for v in random.choice(np.array(self.values), count)]
        assert self.most is not None
        if self.distribution == "uniform":
            return [int(v) for v in random.integers(self.least, self.most, count, endpoint=True)]
        assert self.median is not None and self.sigma is not None
        raw = random.lognormal(math.log(self.median), self.sigma, count)
        return [int(v) for v in np.clip(np.rint(raw), self.least, self.most)]


class RecordedLoad(Frozen):
    """A recorded trace: JSON lines with `at` (seconds), `prompt_tokens` and `output_tokens`, in order of time."""

    path: str
    digest: Digest | None = None
    """Of the file's bytes; where given, another file is refused."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """2 replays it twice as fast."""


class Sweep(Frozen):
    """One load at rising levels, until more load gives no more throughput. One of the two lists."""

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = ()
    rate: tuple[Annotated[float, Field(gt=0)], ...] = ()
    growth: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The sweep ends after a level whose throughput is not this share above the best so far."""

    @model_validator(mode="after")
    def _one_rising_list(self) -> Sweep:
        if bool(self.concurrency) == bool(self.rate):
            raise ValueError("a sweep has either `concurrency` or `rate`")
        if list(self.levels) != sorted(set(self.levels)) or len(self.levels) < 2:
            raise ValueError("a sweep has at least two levels, rising")
        return self

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(map(float, self.concurrency or self.rate))

    @property
    def unit(self) -> Literal["concurrency", "rate"]:
        return "concurrency" if self.concurrency else "rate"

    def saturated(self, throughputs: Sequence[float]) -> bool:
        """Whether the last of these throughputs, one a level, is no growth over the best before it."""
        return len(throughputs) > 1 and throughputs[-1] < (1 + self.growth) * max(throughputs[:-1])


class BenchmarkProfile(Frozen):
    """One load. Closed loop (`concurrency` requests in flight) unless it has a `rate`, a `trace` or a `sweep`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    requests: Annotated[int, Field(ge=4)] = 24
    """How many, at each level of a sweep; of a trace its first so many."""
    prompt_tokens: Tokens | Lengths = 64
    output_tokens: Tokens | Lengths = 64
    """Answers run to exactly this length, so that every candidate does the same work."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """Closed loop: requests in flight."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Open loop: requests a second, sent when they are due, however many are still unanswered."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """Shape of the gamma distribution of the gaps between arrivals: 1 is Poisson, below it bursty, above it even."""
    trace: RecordedLoad | None = None
    """Open loop: arrivals and lengths of a recorded trace."""
    sweep: Sweep | None = None
    """The load at several levels, as a curve. Judged by `max_failed` alone; the cost is read from it."""

    @model_validator(mode="after")
    def _one_kind_of_load(self) -> BenchmarkProfile:
        kinds = [self.concurrency != 1, self.rate is not None, self.trace is not None]
        if sum([*kinds, self.sweep is not None]) > 1:
            raise ValueError(
                f"profile {self.name}: one of concurrency, rate, trace and sweep (a limit on the requests in flight "
                "would make an open loop wait for slow answers)"
            )
        open_loop = self.rate is not None or (self.sweep is not None and bool(self.sweep.rate))
        if self.burstiness != 1.0 and not open_loop:
            raise ValueError(f"profile {self.name}: burstiness needs a rate")
        return self

    @property
    def open_loop(self) -> bool:
        return self.rate is not None or self.trace is not None

    @property
    def expected_output_tokens(self) -> float:
        """Tokens that all answers have together, every level of a sweep included; a trace's own lengths are not known here."""
        each = (
            self.output_tokens.mean
            if isinstance(self.output_tokens, Lengths)
            else self.output_tokens
        )
        return self.requests * each * (len(self.sweep.levels) if self.sweep else 1)

    def at_level(self, level: float) -> BenchmarkProfile:
        """One level of this sweep as a load of its own."""
        assert self.sweep is not None
        chosen: dict[str, Any] = {"sweep": None}
        if self.sweep.unit == "concurrency":
            chosen["concurrency"] = int(level)
        else:
            chosen["rate"] = level
        return BenchmarkProfile.model_validate({**self.to_data(), **chosen})

    def identity(self, trace: Digest | None = None) -> dict[str, Any]:
        """What the load consists of, for the identity of a finished step: a trace by its bytes, not by where it lies."""
        data = self.to_data()
        if self.trace is not None:
            data["trace"] = {"digest": trace, "speed": self.trace.speed}
        return data


class ServiceLevel(Frozen):
    """What a request must keep to count as goodput; each bound in milliseconds."""

    ttft_ms: Annotated[float, Field(gt=0)] | None = None
    tpot_ms: Annotated[float, Field(gt=0)] | None = None
    e2e_ms: Annotated[float, Field(gt=0)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 0.95
    """A load is within the service level if at least this share of its requests is."""

    @model_validator(mode="after")
    def _a_bound(self) -> ServiceLevel:
        if (self.ttft_ms, self.tpot_ms, self.e2e_ms) == (None, None, None):
            raise ValueError("a service level needs at least one of ttft_ms, tpot_ms, e2e_ms")
        return self


@dataclass(frozen=True)
class PlannedRequest:
    at: float
    """Seconds after the block's begin; 0 in a closed loop, where a request is due as soon as there is a place."""
    prompt_tokens: int
    output_tokens: int
    prompt: int
    """Number of the prompt: another number is another text."""


class _Row(Frozen):
    at: Annotated[float, Field(ge=0)]
    prompt_tokens: Tokens
    output_tokens: Tokens


Trace = tuple[_Row, ...]


def parse_trace(text: str) -> Trace:
    """The rows of a recorded trace. ValueError, with the line, for anything that is not one."""
    rows: list[_Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _Row.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if rows and row.at < rows[-1].at:
            raise ValueError(f"line {number}: arrives before the line above it")
        rows.append(row)
    if not rows:
        raise ValueError("it has no rows")
    return tuple(rows)


def planned(
    profile: BenchmarkProfile, *, block: int, requests: int | None = None, trace: Trace = ()
) -> tuple[PlannedRequest, ...]:
    """The requests of one block of `profile` (of `requests`, else all of them). Blocks differ in everything but the profile.

    Block k of a trace is its k-th stretch of `requests` rows. A trace that is too short is a ValueError.
    """
    count = requests or profile.requests
    random = np.random.default_rng(_number(profile.name, block, "load"))
    if profile.trace is not None:
        first = max(block, 0) * count
        rows = trace[first : first + count]
        if len(rows) < count:
            raise ValueError(
                f"profile {profile.name}: the trace has {len(trace)} rows, {first + count} are needed"
            )
        times = [(row.at - rows[0].at) / profile.trace.speed for row in rows]
        lengths = [(row.prompt_tokens, row.output_tokens) for row in rows]
    else:
        times = [0.0] * count
        if profile.rate is not None:
            scale = 1 / (profile.rate * profile.burstiness)
            gaps = random.gamma(profile.burstiness, scale, count)
            times = [float(t) for t in np.cumsum(gaps) - gaps[0]]
        prompts = _lengths(profile.prompt_tokens, random, count)
        answers = _lengths(profile.output_tokens, random, count)
        lengths = list(zip(prompts, answers, strict=True))
    return tuple(
        PlannedRequest(at, prompt, answer, _number(profile.name, block, f"prompt {k}") % 2**31)
        for k, (at, (prompt, answer)) in enumerate(zip(times, lengths, strict=True))
    )


def requests_per_block(profile: BenchmarkProfile, blocks: int) -> int:
    """So many that all blocks together are the profile's requests, and that its concurrency is reached in each."""
    return max(math.ceil(profile.requests / blocks), profile.concurrency)


def _lengths(of: int | Lengths, random: np.random.Generator, count: int) -> list[int]:
    return [of] * count if isinstance(of, int) else of.drawn(random, count)


def _number(*parts: object) -> int:
    text = "/".join(map(str, (SEED, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
