"""Benchmarks: planned loads put to a served model, or to two in turn, by `vllm bench serve` as the load generator.

Prompts are random tokens and answers run to their full length, the same for every candidate, so that every request is the
same work. Latencies count from the time at which a request was due: a server that stalls cannot hide it by holding up the
generator.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lockgate.adapters.benchmark.generator import LoadGenerator, Served, load_generator
from lockgate.adapters.benchmark.results import Load, read_load, together
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    BlockPair,
    Fingerprint,
    ProfileResult,
)
from lockgate.domain.load import (
    WARM_UP,
    BenchmarkProfile,
    Trace,
    parse_trace,
    planned,
    requests_per_block,
)
from lockgate.domain.spec import BenchmarkSpec
from lockgate.errors import UsageError

__all__ = ["Measured", "Served", "Subject", "benchmark", "compare", "profile_identities"]

WARM_UP_REQUESTS = 8
"""At most; a load of lower concurrency is warmed up with as many as that."""

Report = Callable[[float, float | None], None]


@dataclass(frozen=True)
class Subject:
    """A served candidate to be measured."""

    digest: Digest
    endpoint: Served
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Measured:
    """What an interleaved benchmark found: the pairs for the gate, and each side's blocks taken together."""

    comparison: BenchmarkComparison
    candidate: BenchmarkEvidence


@dataclass(frozen=True)
class _Session:
    """One generator and what every load sent with it shares."""

    generator: LoadGenerator
    spec: BenchmarkSpec
    log_dir: Path
    timeout: float
    kept: list[dict[str, Any]] = field(default_factory=list)

    def send(
        self,
        subject: Subject,
        profile: BenchmarkProfile,
        *,
        trace: Trace = (),
        block: int = 0,
        requests: int | None = None,
    ) -> Load:
        plan = planned(profile, block=block, requests=requests, trace=trace)
        raw = self.generator.send(subject.endpoint, profile, plan, timeout=self.timeout)
        self.kept.append({"subject": subject.digest, "block": block, "result": raw})
        return read_load(profile, plan, raw, self.generator.log)

    def warm_up(self, subject: Subject, profile: BenchmarkProfile, trace: Trace) -> None:
        """A few requests of this profile's lengths, other prompts, all at once; not counted."""
        count = min(profile.concurrency, WARM_UP_REQUESTS)
        plan = planned(profile, block=WARM_UP, requests=count, trace=trace)
        at_once = tuple(replace(request, at=0.0) for request in plan)
        closed = BenchmarkProfile(name=profile.name, concurrency=count)
        self.generator.send(subject.endpoint, closed, at_once, timeout=self.timeout)

    def sweep(
        self, subjects: Sequence[Subject], profile: BenchmarkProfile
    ) -> tuple[ProfileResult, ...]:
        """The levels in turn, each put to every subject, until none of them gains throughput."""
        assert profile.sweep is not None
        level_of_service = self.spec.service_level
        found: list[list[tuple[BenchmarkProfile, Load]]] = [[] for _ in subjects]
        for number, level in enumerate(profile.sweep.levels):
            at = profile.at_level(level)
            for one, subject in zip(found, subjects, strict=True):
                one.append((at, self.send(subject, at, block=number)))
            gained = [[_throughput(load) for _, load in one] for one in found]
            if all(profile.sweep.saturated(throughputs) for throughputs in gained):
                break
        results = []
        for one in found:
            at, best = max(one, key=lambda pair: _throughput(pair[1]))
            points = tuple(load.point(level, level_of_service) for level, load in one)
            failed = sum(load.failed for _, load in one)
            result = best.result(at, level_of_service)
            results.append(result.model_copy(update={"curve": points, "failed": failed}))
        return tuple(results)

    def keep(self, profile: BenchmarkProfile) -> None:
        """Writes every timing of a profile, token by token, beside the log."""
        (self.log_dir / f"benchmark-{profile.name}.json").write_text(json.dumps(self.kept))
        self.kept.clear()


def benchmark(
    endpoint: Served,
    spec: BenchmarkSpec,
    *,
    subject: Digest,
    fingerprint: Fingerprint,
    serving_python: Path,
    model_dir: Path,
    log_dir: Path,
    progress: Report | None = None,
    timeout: float = 1800.0,
) -> BenchmarkEvidence:
    """Put `endpoint` under every load of `spec.profiles`, one after the other; `timeout` seconds for each level of load.

    `model_dir` holds the tokenizer. Failed requests are counted, not raised. `progress(done, total)` counts profiles. Raises
    BenchmarkError if the generator crashed, hung, or reported something incomplete or not a number; UsageError for a trace
    that cannot be read.
    """
    started = time.monotonic()
    measured = Subject(subject, endpoint, fingerprint)
    traces = _traces(spec)
    results: list[ProfileResult] = []
    with _session(spec, serving_python, model_dir, log_dir, timeout) as session:
        for done, profile in enumerate(spec.profiles):
            _tell(progress, done, len(spec.profiles))
            session.warm_up(measured, profile, traces[profile.name])
            if profile.sweep is not None:
                results += session.sweep([measured], profile)
            else:
                load = session.send(measured, profile, trace=traces[profile.name])
                results.append(load.result(profile, spec.service_level))
            session.keep(profile)
    _tell(progress, len(spec.profiles), len(spec.profiles))
    return _evidence(measured, results, started)


def compare(
    candidate: Subject,
    stable: Subject,
    spec: BenchmarkSpec,
    *,
    serving_python: Path,
    model_dir: Path,
    log_dir: Path,
    progress: Report | None = None,
    timeout: float = 1800.0,
) -> Measured:
    """Put both under every load in turn, block by block: each pair of blocks is the same requests, sent to one right after
    the other, so that what disturbs the machine disturbs both.

    Which of the two comes first is drawn anew for each pair, from the digests: that alone makes the gate's test exact when
    the two are alike, whatever the noise. Sweeps are put to both, level by level, and are not compared. Raises as
    `benchmark` does.
    """
    started = time.monotonic()
    traces = _traces(spec)
    pairs: list[BlockPair] = []
    results: tuple[list[ProfileResult], list[ProfileResult]] = ([], [])
    total = len(spec.profiles) * spec.blocks
    with _session(spec, serving_python, model_dir, log_dir, timeout) as session:
        for number, profile in enumerate(spec.profiles):
            trace = traces[profile.name]
            _tell(progress, number * spec.blocks, total)
            for subject in (candidate, stable):
                session.warm_up(subject, profile, trace)
            if profile.sweep is not None:
                mine, theirs = session.sweep([candidate, stable], profile)
                results[0].append(mine)
                results[1].append(theirs)
                session.keep(profile)
                continue
            loads: dict[str, list[Load]] = {"candidate": [], "stable": []}
            for block in range(spec.blocks):
                first = _candidate_first(candidate.digest, stable.digest, profile.name, block)
                sides = [("candidate", candidate), ("stable", stable)]
                for side, subject in sides if first else reversed(sides):
                    requests = requests_per_block(profile, spec.blocks)
                    load = session.send(
                        subject, profile, trace=trace, block=block, requests=requests
                    )
                    loads[side].append(load)
                pairs.append(
                    BlockPair(
                        profile=profile.name,
                        candidate_first=first,
                        candidate=loads["candidate"][-1].figures(spec.service_level),
                        stable=loads["stable"][-1].figures(spec.service_level),
                    )
                )
                _tell(progress, number * spec.blocks + block + 1, total)
            for found, blocks in zip(results, loads.values(), strict=True):
                found.append(together(blocks).result(profile, spec.service_level))
            session.keep(profile)
    _tell(progress, total, total)
    comparison = BenchmarkComparison(
        candidate=candidate.digest,
        stable=stable.digest,
        generator=_generator(candidate.fingerprint),
        fingerprint=candidate.fingerprint,
        stable_benchmark=_evidence(stable, results[1], started),
        pairs=tuple(pairs),
        seconds=round(time.monotonic() - started, 3),
    )
    return Measured(comparison, _evidence(candidate, results[0], started))


def profile_identities(spec: BenchmarkSpec) -> list[dict[str, Any]]:
    """What the loads consist of, for the identity of a finished step. UsageError for a trace that cannot be read."""
    return [p.identity(_read_trace(p)[1] if p.trace is not None else None) for p in spec.profiles]


@contextlib.contextmanager
def _session(
    spec: BenchmarkSpec, serving_python: Path, model_dir: Path, log_dir: Path, timeout: float
) -> Iterator[_Session]:
    levels = sum(len(p.sweep.levels) if p.sweep else spec.blocks for p in spec.profiles)
    log = log_dir / "benchmark.log"
    with load_generator(
        serving_python, tokenizer=model_dir, log=log, timeout=2 * timeout * levels
    ) as generator:
        yield _Session(generator, spec, log_dir, timeout)


def _evidence(
    subject: Subject, results: Sequence[ProfileResult], started: float
) -> BenchmarkEvidence:
    return BenchmarkEvidence(
        subject=subject.digest,
        generator=_generator(subject.fingerprint),
        fingerprint=subject.fingerprint,
        profiles=tuple(results),
        seconds=round(time.monotonic() - started, 3),
    )


def _generator(fingerprint: Fingerprint) -> str:
    return f"vllm bench serve ({fingerprint.engine} {fingerprint.engine_version})"


def _candidate_first(candidate: Digest, stable: Digest, profile: str, block: int) -> bool:
    text = f"{candidate}/{stable}/{profile}/{block}"
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def _throughput(load: Load) -> float:
    return load.figures(None).throughput


def _tell(progress: Report | None, done: int, total: int) -> None:
    if progress is not None:
        progress(float(done), float(total))


def _traces(spec: BenchmarkSpec) -> dict[str, Trace]:
    return {p.name: _read_trace(p)[0] if p.trace is not None else () for p in spec.profiles}


def _read_trace(profile: BenchmarkProfile) -> tuple[Trace, Digest]:
    assert profile.trace is not None
    path = Path(profile.trace.path)
    try:
        data = path.read_bytes()
        rows = parse_trace(data.decode())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"profile {profile.name}: the trace {path} cannot be used: {error}",
            hint='one JSON object a line: {"at": seconds, "prompt_tokens": N, "output_tokens": N}',
        ) from error
    digest = Digest.of_bytes(data)
    if profile.trace.digest not in (None, digest):
        raise UsageError(
            f"profile {profile.name}: the trace {path} is {digest}, the spec says {profile.trace.digest}",
            hint="put the recorded file there, or its digest into the spec",
        )
    return rows, digest
