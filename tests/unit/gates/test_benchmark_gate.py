"""The benchmark gate over literal timings."""

from __future__ import annotations

import numpy as np

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkEvidence, Fingerprint, ProfileResult
from lockgate.domain.gates.base import Decision
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec

HERE, ELSEWHERE = Digest.of_bytes(b"here"), Digest.of_bytes(b"elsewhere")


def spec(**limits: float | None) -> BenchmarkSpec:
    profile = BenchmarkProfile(name="single", requests=16)
    return BenchmarkSpec.model_validate(
        {"profiles": [profile.to_data()], "margin": 0.15, "max_ttft_p50_ms": 500, **limits}
    )


def profile(
    *, slower: float = 1.0, noise: float = 0.02, requests: int = 16, failed: int = 0, seed: int = 0
) -> ProfileResult:
    random = np.random.default_rng(seed)
    rows = {
        key: slower * base * np.exp(noise * random.standard_normal(requests))
        for key, base in (("ttft_ms", 100.0), ("tpot_ms", 30.0), ("e2e_ms", 2000.0))
    }

    def summary(values: np.ndarray) -> dict[str, float]:
        shares = {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 99)}
        return {"mean": float(values.mean()), **shares}

    return ProfileResult(
        profile="single",
        completed=requests - failed,
        failed=failed,
        duration_seconds=30.0,
        output_tokens_per_second=30.0 / slower,
        requests_per_second=0.5 / slower,
        ttft_ms=summary(rows["ttft_ms"]),
        tpot_ms=summary(rows["tpot_ms"]),
        itl_ms=summary(rows["tpot_ms"]),
        e2e_ms=summary(rows["e2e_ms"]),
        requests={key: tuple(map(float, values)) for key, values in rows.items()},
    )


def evidence(*profiles: ProfileResult, hardware: Digest = HERE) -> BenchmarkEvidence:
    fingerprint = Fingerprint(
        hardware=hardware,
        cpu="a processor",
        cores=1,
        engine="vllm",
        engine_version="0",
        arguments=(),
    )
    return BenchmarkEvidence(
        subject=Digest.of_bytes(b"candidate"),
        generator="generator",
        fingerprint=fingerprint,
        profiles=profiles,
        seconds=30,
    )


def test_a_candidate_as_fast_as_stable_passes() -> None:
    result = benchmark_gate(spec(), evidence(profile(seed=1)), evidence(profile(seed=2)))
    assert result.decision is Decision.PASS


def test_a_candidate_slower_than_the_margin_fails_by_name_of_the_metric() -> None:
    result = benchmark_gate(
        spec(), evidence(profile(slower=1.4, seed=1)), evidence(profile(seed=2))
    )
    assert result.decision is Decision.FAIL
    assert "slower than the margin" in result.reasons[0]


def test_noise_as_large_as_the_margin_is_not_taken_for_a_pass() -> None:
    noisy = benchmark_gate(
        spec(), evidence(profile(noise=0.5, seed=1)), evidence(profile(noise=0.5, seed=2))
    )
    assert noisy.decision is not Decision.PASS


def test_other_hardware_is_never_compared_silently() -> None:
    elsewhere = evidence(profile(slower=0.1), hardware=ELSEWHERE)
    result = benchmark_gate(spec(), evidence(profile()), elsewhere)
    assert result.decision is Decision.PASS
    assert any("other hardware" in reason for reason in result.reasons)
    assert not any("ratio" in row for row in result.measurements)
    unlimited = spec(max_ttft_p50_ms=None)
    assert (
        benchmark_gate(unlimited, evidence(profile()), elsewhere).decision
        is Decision.INSUFFICIENT_DATA
    )


def test_a_first_release_needs_an_absolute_limit() -> None:
    assert benchmark_gate(spec(), evidence(profile()), None).decision is Decision.PASS
    bare = benchmark_gate(spec(max_ttft_p50_ms=None), evidence(profile()), None)
    assert bare.decision is Decision.INSUFFICIENT_DATA


def test_a_missed_limit_fails_even_where_stable_misses_it_too() -> None:
    for limits in (
        {"max_ttft_p50_ms": 50},
        {"max_tpot_p50_ms": 20},
        {"min_output_tokens_per_second": 100},
    ):
        result = benchmark_gate(spec(**limits), evidence(profile()), evidence(profile()))
        assert result.decision is Decision.FAIL, limits


def test_failed_requests_fail_the_gate() -> None:
    result = benchmark_gate(spec(), evidence(profile(failed=1)), evidence(profile()))
    assert result.decision is Decision.FAIL
    assert "1 requests failed" in result.reasons[0]


def test_a_load_that_was_not_run_does_not_pass() -> None:
    assert benchmark_gate(spec(), None, evidence(profile())).decision is Decision.FAIL
    assert benchmark_gate(spec(), evidence(), evidence(profile())).decision is Decision.FAIL
    half = benchmark_gate(spec(), evidence(profile()), evidence())
    assert half.decision is Decision.INSUFFICIENT_DATA


def test_too_few_requests_do_not_decide() -> None:
    few = evidence(profile().model_copy(update={"requests": {"ttft_ms": (100.0,) * 4}}))
    assert benchmark_gate(spec(), few, few).decision is Decision.INSUFFICIENT_DATA
