"""What a rollout asks of the engine that carries it out, and which of it an engine cannot do.

An engine that brings its own routing (KServe) does not do all that Lockgate's own manifests do. It says so with a reason,
`lockgate plan` repeats it, and a release that needs what is lacking is refused before anything is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from lockgate.domain.spec import CanarySpec, Strategy


class Capability(StrEnum):
    """One thing that a rollout may need."""

    OBSERVED_SLOTS = "observed slots"
    """What runs in each slot, and whether it is ready, can be read from the cluster one slot at a time."""
    EMBEDDED_CLUSTER = "embedded cluster"
    """Runs in the embedded cluster."""
    IDLE_FIRST_RELEASE = "idle first release"
    """A first release stands ready without traffic until it has generated something."""
    HEADER = "header step"
    """Requests with the slot's header reach the slot, whatever its weight."""
    MIRROR = "mirror step"
    """Copies of requests reach the canary, and nobody sees its answers."""
    FRESH_BASELINE = "fresh baseline"
    """A third set of servers stands beside stable and canary."""
    BORROW = "borrowed replicas"
    """The slots' sizes are changed one replica at a time, in step."""
    RECREATE = "replacement in place"
    """Stable is stopped before the candidate starts."""
    IDLE_OLD_VERSION = "idle old version"
    """The old version stays warm through the bake without any traffic."""
    UNTOUCHED_STABLE = "untouched stable version"
    """When a candidate has left, stable's servers are those that ran before."""
    PINNED_STABLE = "pinned stable version"
    """No moment of a deployment sends stable's traffic to anything but stable."""


def needed(canary: CanarySpec, *, first_release: bool, embedded: bool) -> dict[Capability, str]:
    """What this release cannot do without, and what of it asks for that."""
    found: dict[Capability, str] = {
        Capability.OBSERVED_SLOTS: "a release is driven by what is seen"
    }
    if embedded:
        found[Capability.EMBEDDED_CLUSTER] = "LOCKGATE_CLUSTER is `local`"
    if first_release:
        return found
    if canary.strategy is Strategy.BORROW:
        found[Capability.BORROW] = "strategy `borrow`"
    if canary.strategy is Strategy.RECREATE:
        found[Capability.RECREATE] = "strategy `recreate`"
    if canary.baseline == "fresh":
        found[Capability.FRESH_BASELINE] = "`baseline: fresh`"
    for number, step in enumerate(canary.steps, 1):
        if step.traffic == "mirror":
            found[Capability.MIRROR] = f"step {number} mirrors"
        elif step.traffic == "header":
            found[Capability.HEADER] = f"step {number} goes by header"
    if canary.bake_seconds > 0 and canary.control == 0:
        found[Capability.IDLE_OLD_VERSION] = (
            f"a bake of {canary.bake_seconds:.0f} s without a control"
        )
    return found


def lacking(lacks: Mapping[Capability, str], wanted: Mapping[Capability, str]) -> tuple[str, ...]:
    """Why an engine cannot carry this release out; empty where it can."""
    return tuple(
        f"{asked}, which needs {capability}: {lacks[capability]}"
        for capability, asked in wanted.items()
        if capability in lacks
    )


def limits(lacks: Mapping[Capability, str], wanted: Mapping[Capability, str]) -> tuple[str, ...]:
    """What an engine cannot do and this release can do without: to be known, no obstacle."""
    return tuple(
        f"no {capability}: {why}" for capability, why in lacks.items() if capability not in wanted
    )
