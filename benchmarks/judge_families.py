"""Simulated traffic for the calibration of the judge: what both tracks add in each block.

Everything is vectorised over traces: arrays are (traces, blocks). A family says how requests depend
on each other and how replicas wander; a `Change` says what is wrong with the canary. At no change
both tracks are exchangeable: that is the null for which alpha is claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FAMILIES = ("iid", "ar1", "mmpp", "mgk", "batch")
CALM = "calm"
"""As `ar1`, and half as much: replicas calmer than declared let a canary pass soonest. For the false passes."""

WANDER = {"ar1": 0.2, CALM: 0.1}
"""How far each track's log latency wanders of its own (standard deviation)."""

TTFT, TTFT_SIGMA = 0.15, 0.6
ITL, ITL_SIGMA = 0.045, 0.25
TOKENS, TOKENS_SIGMA = 30.0, 0.5
LENGTH_SHARE = 0.3

BOUNDS: Array = np.array([0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0])
"""Upper bounds of vLLM's buckets for the time to first token (the finer ones at its lower end left out)."""


@dataclass(frozen=True)
class Change:
    """The canary's difference. Factors on latencies, shares as they are."""

    latency: float = 1.0
    tail: float = 0.0
    """Share of requests whose TTFT is `tail_times` as long."""
    tail_times: float = 10.0
    token_tail: float = 0.0
    """Share of the engine's steps that take ten times as long."""
    errors: float = 0.01
    tokens: float = 1.0
    finish: float = LENGTH_SHARE


@dataclass(frozen=True)
class Setting:
    """Requests a second and track, seconds, seconds a cell (the time between two scrapes)."""

    rate: float = 2.0
    seconds: float = 300.0
    block: float = 1.0

    @property
    def blocks(self) -> int:
        return round(self.seconds / self.block)


@dataclass
class Sums:
    """Block sums of one histogram."""

    count: Array
    total: Array
    square: Array

    def grouped(self, starts: NDArray[np.int64], until: int | None = None) -> Sums:
        """Sums over runs of cells that begin at these; the last ends at `until`."""
        parts = (x[:, :until] for x in (self.count, self.total, self.square))
        return Sums(*(np.add.reduceat(x, starts, axis=1) for x in parts))

    @staticmethod
    def zeros(shape: tuple[int, int]) -> Sums:
        return Sums(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def add(self, block: NDArray[np.int64], values: Array, rows: NDArray[np.int64]) -> None:
        """Add one value a row where its block is within the trace."""
        ok = (block >= 0) & (block < self.count.shape[1])
        at = (rows[ok], block[ok])
        # each row occurs once: no need for np.add.at
        self.count[at] += 1
        self.total[at] += values[ok]
        self.square[at] += values[ok] ** 2


@dataclass
class TrackBlocks:
    """What one track added a block."""

    ttft: Sums
    itl: Sums
    e2e: Sums
    """End-to-end latency of requests that went well."""
    tokens: Sums
    requests: Array
    errors: Array
    long: Array
    slow: Array
    """Requests whose TTFT was above each of `BOUNDS` (traces, blocks, bounds)."""

    def grouped(self, starts: NDArray[np.int64], until: int | None = None) -> TrackBlocks:
        """The same in blocks: runs of cells that begin at these; the last ends at `until`."""
        ttft, itl, e2e, tokens = (
            x.grouped(starts, until) for x in (self.ttft, self.itl, self.e2e, self.tokens)
        )
        requests, errors, long, slow = (
            np.add.reduceat(x[:, :until], starts, axis=1)
            for x in (self.requests, self.errors, self.long, self.slow)
        )
        return TrackBlocks(ttft, itl, e2e, tokens, requests, errors, long, slow)


def _log_normal_sums(rng: np.random.Generator, n: Array, sigma: float, tail: float) -> Sums:
    """Sums of n independent log-normal values of mean one each (a block and trace)."""
    return _summed(_log_normal(rng, n, sigma, tail), n)


def _log_normal(
    rng: np.random.Generator, n: Array, sigma: float, tail: float, times: float = 10.0
) -> Array:
    """All single values, in the order of the flattened blocks."""
    values = rng.lognormal(-(sigma**2) / 2, sigma, int(n.sum()))
    if tail:
        values *= _slowed(rng, values.size, tail, times)
    return values


def _slowed(rng: np.random.Generator, size: int, share: float, times: float) -> Array:
    return np.where(rng.random(size) < share, times, 1.0)


def _summed(values: Array, n: Array) -> Sums:
    edges = np.concatenate([[0], np.cumsum(n.astype(np.int64).ravel())])
    run, run2 = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values, values**2))
    total, square = (np.diff(c[edges]).reshape(n.shape) for c in (run, run2))
    return Sums(n.astype(float), total, square)


def _above_bounds(values: Array, n: Array) -> Array:
    """How many values of each block lie above each bound."""
    block = np.repeat(np.arange(n.size), n.astype(np.int64).ravel())
    bucket = np.searchsorted(BOUNDS, values)
    size = BOUNDS.size + 1
    counts = np.bincount(block * size + bucket, minlength=n.size * size).reshape(*n.shape, size)
    out: Array = counts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:].astype(float)
    return out


def _drift(rng: np.random.Generator, shape: tuple[int, int], block: float, sd: float) -> Array:
    """AR(1) log factors of one track: correlation time 30 to 60 s (drawn a trace)."""
    time = rng.uniform(30.0, 60.0, shape[0])
    keep = np.exp(-block / time)
    out = np.empty(shape)
    state = rng.normal(0.0, sd, shape[0])
    for i in range(shape[1]):
        state = state * keep + rng.normal(0.0, sd, shape[0]) * np.sqrt(1.0 - keep**2)
        out[:, i] = state
    return out


def _modulation(rng: np.random.Generator, n: int, steps: int, dt: float) -> Array:
    """Arrival-rate factors of a two-state MMPP (bursts of 10 s at 2.5 times, 25 s at 0.4)."""
    high = rng.random(n) < 10 / 35
    out = np.empty((n, steps))
    for i in range(steps):
        out[:, i] = np.where(high, 2.5, 0.4)
        flip = rng.random(n) < np.where(high, dt / 10.0, dt / 25.0)
        high = high ^ flip
    return out


def _answers(
    rng: np.random.Generator, requests: Array, change: Change
) -> tuple[Sums, Array, Array]:
    errors = rng.binomial(requests.astype(np.int64), change.errors).astype(float)
    good = requests - errors
    sums = _log_normal_sums(rng, good, TOKENS_SIGMA, 0.0)
    scale = TOKENS * change.tokens
    tokens = Sums(good, sums.total * scale, sums.square * scale**2)
    long = rng.binomial(good.astype(np.int64), change.finish).astype(float)
    return tokens, errors, long


def _end_to_end(ttft: Sums, itl: Sums, tokens: Sums) -> Sums:
    """End-to-end latencies of a cell: the mean time to first token, then tokens at the mean pace."""
    with np.errstate(invalid="ignore", divide="ignore"):
        first = np.nan_to_num(ttft.total / ttft.count)
        pace = np.nan_to_num(itl.total / itl.count)
        length = np.nan_to_num(tokens.square / tokens.total)
    total = tokens.count * first + tokens.total * pace
    return Sums(tokens.count, total, tokens.count * first**2 + tokens.total * pace**2 * length)


def _scaled(sums: Sums, factor: Array | float) -> Sums:
    return Sums(sums.count, sums.total * factor, sums.square * np.square(factor))


def _token_latency(
    rng: np.random.Generator, tokens: Array, factor: Array | float, batch: float, tail: float
) -> Sums:
    """Inter-token latencies of a block; `batch` tokens share each step of the engine."""
    count = np.maximum(np.round(tokens), 0.0)
    steps = np.ceil(count / batch)
    sums = _log_normal_sums(rng, steps, ITL_SIGMA, tail)
    per = np.divide(count, steps, out=np.zeros_like(count), where=steps > 0)
    return _scaled(Sums(count, sums.total * per, sums.square * per), ITL * np.asarray(factor))


def _queue(
    rng: np.random.Generator,
    shape: tuple[int, int],
    setting: Setting,
    rate: Array | None,
    load: float,
    change: Change,
) -> tuple[Sums, Array, Array]:
    """TTFT of an M/G/8 queue (log-normal service): waiting time plus prefill. `rate`: factors of
    the arrival rate a second of trace (bursts), or None."""
    servers, warm = 8, 60.0
    n = shape[0]
    mean_service = load * servers / setting.rate
    total = setting.seconds + warm
    # arrivals by thinning a faster Poisson process
    peak = 1.0 if rate is None else 2.5
    arrivals = int(setting.rate * peak * total * 1.1 + 30)
    time = np.zeros(n)
    free = np.zeros((n, servers))
    rows = np.arange(n)
    sums, requests = Sums.zeros(shape), np.zeros(shape)
    above = np.zeros((*shape, BOUNDS.size))
    for _ in range(arrivals):
        time = time + rng.exponential(1.0 / (setting.rate * peak), n)
        real = np.ones(n, dtype=bool)
        if rate is not None:
            second = np.minimum(time, total - 1).astype(np.int64)
            real = rng.random(n) < rate[rows, second] / peak
        server = free.argmin(axis=1)
        start = np.maximum(time, free[rows, server])
        service = rng.lognormal(-0.32, 0.8, n) * mean_service
        free[rows[real], server[real]] = (start + service)[real]
        ttft = change.latency * (start - time + TTFT * rng.lognormal(-0.08, 0.4, n))
        if change.tail:
            ttft *= _slowed(rng, n, change.tail, change.tail_times)
        block = np.floor((time + ttft - warm) / setting.block).astype(np.int64)
        block = np.where(real, block, -1)
        sums.add(block, ttft, rows)
        seen = (block >= 0) & (block < shape[1])
        above[rows[seen], block[seen]] += ttft[seen, None] > BOUNDS
        arrived = np.floor((time - warm) / setting.block).astype(np.int64)
        ok = real & (arrived >= 0) & (arrived < shape[1])
        requests[rows[ok], arrived[ok]] += 1
    return sums, requests, above


def _batch_server(
    rng: np.random.Generator, shape: tuple[int, int], setting: Setting, change: Change
) -> tuple[Sums, Array, Sums, Array]:
    """A server that slows down with the number of running requests (at most 16), in steps of
    0.25 s. Returns TTFT sums, requests, ITL sums and the requests above each bound."""
    dt, cap, warm = 0.25, 16, 60.0
    n = shape[0]
    running, waiting = np.zeros(n), np.zeros(n)
    steps, per = round((setting.seconds + warm) / dt), round(setting.block / dt)
    ttft, itl = Sums.zeros(shape), Sums.zeros(shape)
    requests, above = np.zeros(shape), np.zeros((*shape, BOUNDS.size))
    step_time = ITL * (1 + 0.08 * running)
    for i in range(steps):
        arrived = rng.poisson(setting.rate * dt, n)
        leave = rng.binomial(running.astype(np.int64), 1 - np.exp(-dt / (step_time * 50.0)))
        running = running - leave
        entered = np.minimum(waiting + arrived, cap - running)
        queue_wait = waiting * step_time * 50.0 / cap
        waiting = waiting + arrived - entered
        running = running + entered
        step_time = ITL * (1 + 0.08 * running)
        block = (i - round(warm / dt)) // per
        if 0 <= block < shape[1]:
            first = change.latency * (queue_wait + 2 * step_time) * rng.lognormal(-0.045, 0.3, n)
            made = running * dt / step_time
            late = rng.binomial(arrived, change.tail) if change.tail else np.zeros(n)
            for many, took in ((arrived - late, first), (late, change.tail_times * first)):
                ttft.count[:, block] += many
                ttft.total[:, block] += many * took
                ttft.square[:, block] += many * took**2
                above[:, block] += many[:, None] * (took[:, None] > BOUNDS)
            noisy = change.latency * step_time * rng.lognormal(-0.005, 0.1, n)
            if change.token_tail:
                noisy *= _slowed(rng, n, change.token_tail, 10.0)
            itl.count[:, block] += made
            itl.total[:, block] += made * noisy
            itl.square[:, block] += made * noisy**2
            requests[:, block] += arrived
    return ttft, requests, itl, above


def simulate(
    family: str, setting: Setting, traces: int, change: Change, rng: np.random.Generator
) -> tuple[TrackBlocks, TrackBlocks]:
    """Baseline's and canary's blocks. In the queueing families the canary's TTFT distribution is
    the baseline's, scaled: a slower engine there would change the load too, which is another
    regression than the one named."""
    shape = (traces, setting.blocks)
    seconds = math.ceil(setting.seconds + 60)
    bursts = _modulation(rng, traces, seconds, 1.0) if family == "mmpp" else None
    out: list[TrackBlocks] = []
    for change_here in (Change(), change):
        factor, token_tail = change_here.latency, change_here.token_tail
        if family == "batch":
            ttft, requests, itl, slow = _batch_server(rng, shape, setting, change_here)
        elif family in ("mgk", "mmpp"):
            load = 0.7 if family == "mgk" else 0.5
            ttft, requests, slow = _queue(rng, shape, setting, bursts, load, change_here)
            itl = _token_latency(rng, ttft.count * TOKENS, factor, 8.0, token_tail)
        else:
            requests = rng.poisson(setting.rate * setting.block, shape).astype(float)
            sd = WANDER.get(family)
            wander = np.exp(_drift(rng, shape, setting.block, sd)) if sd else np.ones(shape)
            slow_ones = change_here.tail, change_here.tail_times
            values = _log_normal(rng, requests, TTFT_SIGMA, *slow_ones) * np.repeat(
                (TTFT * factor * wander).ravel(), requests.astype(np.int64).ravel()
            )
            ttft, slow = _summed(values, requests), _above_bounds(values, requests)
            batch = 1.0 if family == "iid" else 4.0
            itl = _token_latency(rng, requests * TOKENS, factor * wander, batch, token_tail)
        tokens, errors, long = _answers(rng, requests, change_here)
        e2e = _end_to_end(ttft, itl, tokens)
        out.append(TrackBlocks(ttft, itl, e2e, tokens, requests, errors, long, slow))
    return out[0], out[1]
