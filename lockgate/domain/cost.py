"""What it costs to serve a model at the declared service level, from a benchmark and a table of prices.

A replica's capacity is the highest measured throughput whose load kept the service level (where one is declared) without a
failed request. Nothing is extrapolated: a load that was not measured has no capacity, and what is not known is None and noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkEvidence, Fingerprint, LoadPoint, ProfileResult
from lockgate.domain.load import ServiceLevel

SECONDS_AN_HOUR = 3600
A_MILLION = 1_000_000


class Demand(Frozen):
    """The load to be carried by all replicas together."""

    requests_per_second: Annotated[float, Field(gt=0)]
    prompt_tokens: Annotated[float, Field(ge=1)]
    """Mean of a request."""
    output_tokens: Annotated[float, Field(ge=1)]
    """Mean of an answer."""


class Price(Frozen):
    per_hour: Annotated[float, Field(gt=0)]
    """Of what one replica occupies: all its accelerators, or its share of the machine."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """When it was read from the provider's list."""


class Capacity(Frozen):
    """What one replica carried."""

    profile: str
    level: float | None
    """Of a sweep, in its unit."""
    requests_per_second: float
    output_tokens_per_second: float
    prompt_tokens_per_second: float | None


class CostReport(Frozen):
    """One candidate's cost."""

    subject: Digest
    hardware: Digest
    machine: str
    """Name that the price was looked up by."""
    capacity: Capacity | None
    replicas: int | None = None
    """For the declared demand."""
    price: Price | None = None
    per_million_output_tokens: float | None = None
    """At full capacity; prompt tokens are not charged for apart."""
    per_hour: float | None = None
    """All replicas of the demand."""
    notes: tuple[str, ...] = ()
    """Why something above is missing."""


class Saving(Frozen):
    """What the candidate saves against another on the same hardware; negative is dearer."""

    against: Digest
    capacity_ratio: float
    """Candidate's output tokens a second over the other's."""
    replicas: int | None
    per_hour: float | None
    share: float
    """Of the price of a token; 0.25 is a quarter cheaper."""


def cost_of(
    benchmark: BenchmarkEvidence,
    *,
    service_level: ServiceLevel | None,
    demand: Demand | None,
    prices: Mapping[str, Price],
) -> CostReport:
    """Capacity, replicas and price of what `benchmark` measured."""
    machine = machine_name(benchmark.fingerprint)
    capacity = _capacity(benchmark, service_level)
    price = prices.get(machine)
    notes = []
    if capacity is None:
        notes.append("no measured load kept the service level without a failed request")
    if price is None:
        notes.append(f"no price for {machine!r}")
    replicas = None
    if demand is None:
        notes.append("no demand is declared")
    elif capacity is not None:
        replicas = _replicas(capacity, demand)
    per_million = per_hour = None
    if price is not None and capacity is not None:
        tokens_an_hour = capacity.output_tokens_per_second * SECONDS_AN_HOUR
        per_million = price.per_hour / tokens_an_hour * A_MILLION
    if price is not None and replicas is not None:
        per_hour = replicas * price.per_hour
    return CostReport(
        subject=benchmark.subject,
        hardware=benchmark.fingerprint.hardware,
        machine=machine,
        capacity=capacity,
        replicas=replicas,
        price=price,
        per_million_output_tokens=per_million,
        per_hour=per_hour,
        notes=tuple(notes),
    )


def saving(candidate: CostReport, other: CostReport) -> Saving | None:
    """What `candidate` saves; None on other hardware, or where a capacity is not known."""
    mine, theirs = candidate.capacity, other.capacity
    if candidate.hardware != other.hardware or mine is None or theirs is None:
        return None
    ratio = mine.output_tokens_per_second / theirs.output_tokens_per_second
    both = candidate.replicas is not None and other.replicas is not None
    priced = candidate.per_hour is not None and other.per_hour is not None
    if priced and candidate.price != other.price:
        return None
    return Saving(
        against=other.subject,
        capacity_ratio=ratio,
        replicas=(other.replicas or 0) - (candidate.replicas or 0) if both else None,
        per_hour=(other.per_hour or 0) - (candidate.per_hour or 0) if priced else None,
        share=1 - 1 / ratio,
    )


def machine_name(fingerprint: Fingerprint) -> str:
    """What prices are looked up by: the accelerator's name, else the processor's."""
    return fingerprint.gpu or fingerprint.cpu


def _capacity(benchmark: BenchmarkEvidence, level: ServiceLevel | None) -> Capacity | None:
    best: Capacity | None = None
    for name, point in _points(benchmark):
        kept = level is None or _keeps(point, level)
        if point.failed or not point.completed or not kept or point.output_tokens_per_second <= 0:
            continue
        if best is None or point.output_tokens_per_second > best.output_tokens_per_second:
            best = Capacity(
                profile=name,
                level=point.level if isinstance(point, LoadPoint) else None,
                requests_per_second=point.requests_per_second,
                output_tokens_per_second=point.output_tokens_per_second,
                prompt_tokens_per_second=point.prompt_tokens_per_second,
            )
    return best


def _points(benchmark: BenchmarkEvidence) -> Iterator[tuple[str, LoadPoint | ProfileResult]]:
    for result in benchmark.profiles:
        for point in result.curve or (result,):
            yield result.profile, point


def _keeps(point: LoadPoint | ProfileResult, level: ServiceLevel) -> bool:
    kept = point.kept_service_level
    return kept is not None and kept >= level.share * (point.completed + point.failed)


def _replicas(capacity: Capacity, demand: Demand) -> int:
    """So many that neither the answers' nor the prompts' tokens exceed what was carried."""
    answers = demand.requests_per_second * demand.output_tokens
    shares = [answers / capacity.output_tokens_per_second]
    if capacity.prompt_tokens_per_second:
        prompts = demand.requests_per_second * demand.prompt_tokens
        shares.append(prompts / capacity.prompt_tokens_per_second)
    return math.ceil(max(shares) - 1e-9)
