"""Worlds whose truth is known for the benchmark gate; `benchmarks.gate_calibration` judges them.

A request's time is the machine's speed times its own noise. Within a block the noise is autocorrelated (`kept` from one
request to the next). The machine's speed wanders from block to block: a logarithm of standard deviation `between` of which
`drags` is kept from one block to the next (1: it is another in every run, and constant in it), and a drift over the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    BlockFigures,
    BlockPair,
    Fingerprint,
    ProfileResult,
)
from lockgate.domain.gates.base import Decision
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec

Random = np.random.Generator
Times = NDArray[np.float64]
Row = tuple[str, str, Callable[[Random], Decision]]
"""What is true, what is promised, and one draw, judged."""

CANDIDATE, STABLE = Digest.of_bytes(b"candidate"), Digest.of_bytes(b"stable")
BASES = {"ttft_ms": 100.0, "tpot_ms": 30.0, "e2e_ms": 2000.0}
MARK = Fingerprint(
    hardware=STABLE, cpu="simulated", cores=1, engine="none", engine_version="0", arguments=()
)


@dataclass(frozen=True)
class Noise:
    within: float
    kept: float
    between: float = 0.0
    drags: float = 0.0
    drift: float = 0.0
    """Of the machine's speed from the first block to the last, as a logarithm."""

    def requests(self, random: Random, *shape: int) -> Times:
        return np.exp(self.within * _wandering(random, shape, self.kept))

    def machine(self, random: Random, blocks: int) -> Times:
        if self.drags == 1.0:
            speed = np.full(blocks, random.standard_normal())
        else:
            speed = _wandering(random, (blocks,), self.drags)
        return np.exp(self.between * speed + self.drift * np.linspace(0, 1, blocks))


def _wandering(random: Random, shape: tuple[int, ...], kept: float) -> Times:
    """Standard normal values, along the last axis each alike to the one before it."""
    steps = math.sqrt(1 - kept**2) * random.standard_normal(shape)
    steps[..., 0] = random.standard_normal(shape[:-1])
    return np.asarray(lfilter([1.0], [1.0, -kept], steps)) if kept else steps


def _blocks(random: Random, noise: Noise, requests: int, factors: Times) -> list[BlockFigures]:
    """One side's blocks, each slower by its factor."""
    ttft, tpot, e2e = noise.requests(random, 3, factors.size, requests)
    columns = zip(
        100 * factors * np.median(ttft, axis=1),
        30 * factors * np.median(tpot, axis=1),
        2000 * factors * e2e.mean(axis=1),
        strict=True,
    )
    return [
        BlockFigures(
            completed=requests,
            failed=0,
            ttft=float(first),
            tpot=float(token),
            e2e=float(whole),
            throughput=1.0,
        )
        for first, token, whole in columns
    ]


def _result(random: Random, requests: int, noise: Noise, slower: float) -> ProfileResult:
    factor = slower * noise.machine(random, 1)[0]
    rows = {key: base * factor * noise.requests(random, requests) for key, base in BASES.items()}

    def summary(values: Times) -> dict[str, float]:
        return {"mean": float(values.mean()), "p50": float(np.median(values))}

    return ProfileResult(
        profile="load",
        completed=requests,
        failed=0,
        duration_seconds=1,
        output_tokens_per_second=1,
        requests_per_second=1,
        ttft_ms=summary(rows["ttft_ms"]),
        tpot_ms=summary(rows["tpot_ms"]),
        itl_ms=summary(rows["tpot_ms"]),
        e2e_ms=summary(rows["e2e_ms"]),
        requests={key: tuple(map(float, values)) for key, values in rows.items()},
    )


def _evidence(subject: Digest, result: ProfileResult) -> BenchmarkEvidence:
    return BenchmarkEvidence(
        subject=subject, generator="simulated", fingerprint=MARK, profiles=(result,), seconds=0
    )


def _in_turn(
    random: Random, spec: BenchmarkSpec, requests: int, noise: Noise, slower: float
) -> Decision:
    speeds = noise.machine(random, 2 * spec.blocks).reshape(-1, 2)
    candidate_first = random.integers(2, size=spec.blocks)
    block = np.arange(spec.blocks)
    mine = _blocks(random, noise, requests, slower * speeds[block, 1 - candidate_first])
    theirs = _blocks(random, noise, requests, speeds[block, candidate_first])
    pairs = [
        BlockPair(profile="load", candidate_first=bool(first), candidate=own, stable=other)
        for first, own, other in zip(candidate_first, mine, theirs, strict=True)
    ]
    result = _result(random, spec.profiles[0].requests, noise, 1.0)
    comparison = BenchmarkComparison(
        candidate=CANDIDATE,
        stable=STABLE,
        generator="simulated",
        fingerprint=MARK,
        stable_benchmark=_evidence(STABLE, result),
        pairs=tuple(pairs),
        seconds=0,
    )
    return benchmark_gate(spec, _evidence(CANDIDATE, result), None, comparison).decision


def _apart(
    random: Random, spec: BenchmarkSpec, requests: int, noise: Noise, slower: float
) -> Decision:
    mine, theirs = _result(random, requests, noise, slower), _result(random, requests, noise, 1.0)
    return benchmark_gate(spec, _evidence(CANDIDATE, mine), _evidence(STABLE, theirs)).decision


def _rows(
    about: str,
    promised: bool,
    margin: float,
    judge: Callable[[Random, float], Decision],
) -> Iterator[Row]:
    for truth, slower, promise in (
        (f"exactly at the margin {margin}", 1 + margin, "pass <= 0.05, fail <= 0.05"),
        (f"A/A, margin {margin}", 1.0, "fail <= 0.05"),
        (f"slower by twice the margin {margin}", 1 + 2 * margin, ""),
    ):

        def draw(random: Random, slower: float = slower) -> Decision:
            return judge(random, slower)

        yield f"{truth}; {about}", promise if promised else "", draw


IN_TURN = (
    # pairs of blocks, requests a block, margin, noise
    (8, 3, 0.15, Noise(0.05, 0.0)),
    (8, 3, 0.15, Noise(0.15, 0.5)),
    (16, 6, 0.15, Noise(0.15, 0.5)),
    (8, 3, 0.15, Noise(0.05, 0.0, between=0.20, drags=1.0)),
    (8, 3, 0.15, Noise(0.05, 0.0, between=0.05, drags=0.9)),
    (8, 3, 0.15, Noise(0.05, 0.0, between=0.20, drags=0.9)),
    (8, 3, 0.15, Noise(0.05, 0.0, between=0.20, drags=0.5)),
    (32, 3, 0.15, Noise(0.05, 0.0, between=0.20, drags=0.5)),
    (8, 3, 0.15, Noise(0.05, 0.3, between=0.05, drags=0.9, drift=0.5)),
    (8, 2, 1.5, Noise(0.15, 0.5, between=0.20, drags=0.9)),
)
APART = (
    (24, 0.15, Noise(0.15, 0.5), True),
    (64, 0.15, Noise(0.15, 0.5), True),
    (100, 0.15, Noise(0.15, 0.5), True),
    (64, 0.15, Noise(0.05, 0.0, between=0.05, drags=1.0), False),
    (64, 1.0, Noise(0.10, 0.3, between=0.20, drags=1.0), False),
)


def benchmark_worlds() -> Iterator[Row]:
    """In turn, which promises whatever the machine does; apart, which promises only where runs do not differ."""
    for blocks, requests, margin, noise in IN_TURN:
        profile = BenchmarkProfile(name="load", requests=max(4, blocks * requests))
        spec = BenchmarkSpec(profiles=(profile,), margin=margin, blocks=blocks)

        def in_turn(
            random: Random,
            slower: float,
            spec: BenchmarkSpec = spec,
            requests: int = requests,
            noise: Noise = noise,
        ) -> Decision:
            return _in_turn(random, spec, requests, noise, slower)

        about = f"in turn, {blocks} pairs of {requests} requests, noise {noise.within:.0%} (kept {noise.kept})"
        if noise.between:
            kept = "constant in a run" if noise.drags == 1 else f"kept {noise.drags}"
            about += f", machine {noise.between:.0%} ({kept})"
        if noise.drift:
            about += f", drift {noise.drift:.0%}"
        yield from _rows(about, True, margin, in_turn)
    for requests, margin, noise, promised in APART:
        profile = BenchmarkProfile(name="load", requests=requests)
        spec = BenchmarkSpec(profiles=(profile,), margin=margin)

        def apart(
            random: Random,
            slower: float,
            spec: BenchmarkSpec = spec,
            requests: int = requests,
            noise: Noise = noise,
        ) -> Decision:
            return _apart(random, spec, requests, noise, slower)

        about = (
            f"apart, {requests} requests, noise {noise.within:.0%} (kept {noise.kept}), "
            f"between runs {noise.between:.0%}"
        )
        yield from _rows(about, promised, margin, apart)
