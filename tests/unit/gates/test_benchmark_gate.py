"""The benchmark gate over literal timings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    BlockFigures,
    BlockPair,
    Fingerprint,
    ProfileResult,
)
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec

HERE, ELSEWHERE = Digest.of_bytes(b"here"), Digest.of_bytes(b"elsewhere")
STABLE = Digest.of_bytes(b"stable")


def spec(**limits: Any) -> BenchmarkSpec:
    profile = BenchmarkProfile(name="single", requests=16)
    return BenchmarkSpec.model_validate(
        {"profiles": [profile.to_data()], "margin": 0.15, "max_ttft_p50_ms": 500, **limits}
    )


def profile(
    *, slower: float = 1.0, noise: float = 0.02, requests: int = 64, failed: int = 0, seed: int = 0
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
    assert "worse than the margin" in result.reasons[0]


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
    few = evidence(profile().model_copy(update={"requests": {"ttft_ms": (100.0,) * 63}}))
    assert benchmark_gate(spec(), few, few).decision is Decision.INSUFFICIENT_DATA


def figures(slower: float = 1.0, *, kept: int | None = None, failed: int = 0) -> BlockFigures:
    return BlockFigures(
        completed=4 - failed,
        failed=failed,
        ttft=100 * slower,
        tpot=30 * slower,
        e2e=2000 * slower,
        throughput=30 / slower,
        kept_service_level=kept,
    )


def in_turn(
    *,
    slower: float = 1.0,
    between: float = 0.0,
    within: float = 0.02,
    blocks: int = 8,
    kept: tuple[int, int] | None = None,
    hardware: Digest = HERE,
) -> BenchmarkComparison:
    """Pairs of blocks on a machine whose speed wanders by `between` from pair to pair, for both alike."""
    random = np.random.default_rng(7)
    pairs = []
    for number in range(blocks):
        machine = np.exp(between * random.standard_normal())
        mine, theirs = machine * np.exp(within * random.standard_normal(2))
        pairs.append(
            BlockPair(
                profile="single",
                candidate_first=number % 2 == 0,
                candidate=figures(slower * mine, kept=kept and kept[0]),
                stable=figures(theirs, kept=kept and kept[1]),
            )
        )
    there = evidence(profile(), hardware=hardware).model_copy(update={"subject": STABLE})
    return BenchmarkComparison(
        candidate=Digest.of_bytes(b"candidate"),
        stable=STABLE,
        generator="generator",
        fingerprint=there.fingerprint,
        stable_benchmark=there,
        pairs=tuple(pairs),
        seconds=30,
    )


def judged(comparison: BenchmarkComparison, **limits: Any) -> GateResult:
    return benchmark_gate(spec(**limits), evidence(profile()), None, comparison)


def test_noise_that_both_share_is_absorbed_when_they_are_measured_in_turn() -> None:
    assert judged(in_turn(between=0.5)).decision is Decision.PASS
    assert judged(in_turn(between=0.5, slower=1.3)).decision is Decision.FAIL


def test_an_undecided_comparison_says_how_many_more_blocks_would_decide() -> None:
    result = judged(in_turn(within=0.2, slower=1.05))
    assert result.decision is Decision.INSUFFICIENT_DATA
    assert "more pairs of blocks would decide" in result.reasons[0]
    undecided = next(r for r in result.measurements if r.get("decision") == "insufficient_data")
    assert undecided["pairs_to_decide"] > undecided["pairs"] == 8
    enough = in_turn(within=0.2, slower=1.05, blocks=2 * undecided["pairs_to_decide"])
    assert judged(enough, blocks=16).decision is Decision.PASS


def test_a_margin_of_its_own_holds_for_its_metric_alone() -> None:
    slower = in_turn(slower=1.3)
    assert judged(slower, margins={"ttft": 0.5, "tpot": 0.5, "e2e": 0.5}).decision is Decision.PASS
    tight = judged(slower, margins={"ttft": 0.5, "tpot": 0.5})
    assert tight.decision is Decision.FAIL
    assert "end to end" in tight.reasons[0]
    loose = {"ttft": 0.5, "tpot": 0.5, "e2e": 0.5, "throughput": 0.1}
    assert "output tokens per second" in judged(slower, margins=loose).reasons[0]


def test_lost_goodput_fails_even_where_the_medians_are_the_same() -> None:
    level = {"service_level": {"ttft_ms": 500}}
    assert judged(in_turn(kept=(4, 4)), **level).decision is Decision.PASS
    lost = judged(in_turn(kept=(1, 4)), **level)
    assert lost.decision is Decision.FAIL
    assert "within the service level" in lost.reasons[0]


def test_a_comparison_in_turn_that_is_not_whole_or_not_of_these_two_does_not_pass() -> None:
    assert judged(in_turn(blocks=7)).decision is Decision.INSUFFICIENT_DATA
    of_another = in_turn().model_copy(update={"candidate": STABLE})
    assert judged(of_another).decision is Decision.INSUFFICIENT_DATA
    other_stable = evidence(profile())
    beside = benchmark_gate(spec(), evidence(profile()), other_stable, in_turn())
    assert beside.decision is Decision.INSUFFICIENT_DATA
    silent = in_turn()
    dead = figures().model_copy(update={"ttft": None, "tpot": None, "e2e": None})
    pair = silent.pairs[3].model_copy(update={"candidate": dead})
    broken = silent.model_copy(update={"pairs": (*silent.pairs[:3], pair, *silent.pairs[4:])})
    assert judged(broken).decision is Decision.FAIL


def test_servers_on_different_hardware_are_not_compared_even_in_turn() -> None:
    result = judged(in_turn(slower=3.0, hardware=ELSEWHERE))
    assert not any("ratio" in row for row in result.measurements)
    assert any("other hardware" in reason for reason in result.reasons)


def test_runs_made_apart_are_named_so() -> None:
    apart = benchmark_gate(
        spec(), evidence(profile(seed=1)), evidence(profile(seed=2)), apart="no room for both"
    )
    assert apart.decision is Decision.PASS
    assert any("no room for both" in reason for reason in apart.reasons)


def test_the_result_carries_what_serving_costs_and_what_the_candidate_saves() -> None:
    result = judged(
        in_turn(),
        demand={"requests_per_second": 5, "prompt_tokens": 64, "output_tokens": 60},
        prices={"a processor": {"per_hour": 0.108, "currency": "EUR", "date": "2026-11-01"}},
    )
    row = next(row for row in result.measurements if "cost" in row)
    assert row["cost"]["replicas"] == 10
    assert row["cost"]["per_million_output_tokens"] == pytest.approx(1.0)
    assert row["saving"]["share"] == pytest.approx(0.0)


def test_where_the_spec_asks_for_no_comparison_the_limits_decide_and_the_result_says_so() -> None:
    alone = spec(compare="limits")
    slow = benchmark_gate(alone, evidence(profile(slower=3)), evidence(profile()))
    assert slow.decision is Decision.PASS
    assert any("no comparison with stable" in reason for reason in slow.reasons)
    too_slow = benchmark_gate(alone, evidence(profile(slower=6)), evidence(profile()))
    assert too_slow.decision is Decision.FAIL


def test_no_comparison_and_no_limit_is_no_spec() -> None:
    with pytest.raises(ValidationError, match="needs an absolute limit"):
        spec(compare="limits", max_ttft_p50_ms=None)
