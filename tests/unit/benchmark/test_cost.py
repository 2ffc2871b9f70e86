"""What serving costs, from literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from lockgate.domain.cost import Demand, Price, cost_of, saving
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkEvidence, Fingerprint, LoadPoint, ProfileResult
from lockgate.domain.load import ServiceLevel

LEVEL = ServiceLevel(ttft_ms=500, share=0.9)
DEMAND = Demand(requests_per_second=10, prompt_tokens=100, output_tokens=50)
PRICES = {"a GPU": Price(per_hour=3.6, currency="USD", date="2026-11-01")}


def point(level: float, tokens: float, kept: int, failed: int = 0) -> LoadPoint:
    return LoadPoint(
        level=level,
        unit="concurrency",
        completed=20 - failed,
        failed=failed,
        requests_per_second=tokens / 50,
        output_tokens_per_second=tokens,
        prompt_tokens_per_second=2 * tokens,
        ttft_ms={},
        tpot_ms={},
        e2e_ms={},
        kept_service_level=kept,
    )


def measured(*curve: LoadPoint, hardware: str = "here", subject: str = "c") -> BenchmarkEvidence:
    mark = Fingerprint(
        hardware=Digest.of_bytes(hardware.encode()),
        cpu="a processor",
        gpu="a GPU",
        cores=1,
        engine="vllm",
        engine_version="0",
        arguments=(),
    )
    best = max(curve, key=lambda p: p.output_tokens_per_second)
    sweep = ProfileResult(
        profile="sweep",
        completed=20,
        failed=0,
        duration_seconds=1,
        output_tokens_per_second=best.output_tokens_per_second,
        requests_per_second=1,
        ttft_ms={},
        tpot_ms={},
        itl_ms={},
        e2e_ms={},
        curve=curve,
    )
    return BenchmarkEvidence(
        subject=Digest.of_bytes(subject.encode()),
        generator="g",
        fingerprint=mark,
        profiles=(sweep,),
        seconds=1,
    )


def cost(evidence: BenchmarkEvidence, **more: Any) -> Any:
    return cost_of(evidence, **{"service_level": LEVEL, "demand": DEMAND, "prices": PRICES, **more})


def test_capacity_is_the_highest_throughput_that_kept_the_service_level() -> None:
    report = cost(measured(point(1, 40, 20), point(4, 100, 18), point(8, 150, 10)))
    assert report.capacity.level == 4
    assert report.replicas == 5
    assert report.per_million_output_tokens == pytest.approx(10.0)
    assert report.per_hour == pytest.approx(18.0)
    assert cost(measured(point(4, 100, 18), point(8, 150, 10)), service_level=None).replicas == 4


def test_replicas_carry_the_prompts_as_well_as_the_answers() -> None:
    long_prompts = Demand(requests_per_second=10, prompt_tokens=1000, output_tokens=50)
    assert cost(measured(point(4, 100, 20)), demand=long_prompts).replicas == 50


def test_a_load_with_failures_or_none_within_the_level_has_no_capacity_and_says_so() -> None:
    for curve in ([point(1, 40, 5)], [point(1, 40, 19, failed=1)]):
        report = cost(measured(*curve))
        assert report.capacity is None and report.replicas is None
        assert report.per_million_output_tokens is None
        assert "no measured load kept the service level" in report.notes[0]
    unpriced = cost(measured(point(1, 40, 20)), prices={}, demand=None)
    assert unpriced.price is None and len(unpriced.notes) == 2


def test_a_saving_is_of_the_same_hardware_or_none() -> None:
    mine, theirs = measured(point(1, 125, 20)), measured(point(1, 100, 20), subject="s")
    saved = saving(cost(mine), cost(theirs))
    assert saved is not None
    assert saved.capacity_ratio == pytest.approx(1.25)
    assert saved.share == pytest.approx(0.2)
    assert (saved.replicas, saved.per_hour) == (1, pytest.approx(3.6))
    elsewhere = measured(point(1, 100, 20), hardware="there")
    assert saving(cost(mine), cost(elsewhere)) is None
