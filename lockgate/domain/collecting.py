"""What garbage collection may never take: everything that Git's state, its history's evidence and warm slots refer to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import ReleaseState, Slot

Kind = Literal["image", "document", "step record", "trace", "log", "snapshot", "scratch", "blob"]

MADE_AGAIN = frozenset(
    {"fetch", "quantize", "scan-weights", "evaluate", "measure", "compare", "gate-predicate"}
)
"""Steps whose records only save work. Others remember: what was tracked, how long steps took, what a re-scan knew."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Garbage(Frozen):
    """Something that nothing refers to any more."""

    kind: Kind
    name: str
    bytes: int


class Needed(Frozen):
    """What Git refers to."""

    images: frozenset[Digest]
    """Model and runtime images of everything in a slot: stable, candidate, warm."""
    candidates: frozenset[Digest]
    """Of these, and of denials."""
    evidence: frozenset[Digest]
    """Documents: of every commit of the history, which is what `audit` reads."""
    traces: Mapping[str, frozenset[int]]
    """Generations of the canary steps of what stands in a slot, by directory."""


class CommittedRelease(Frozen):
    """What the trailers of one commit say, of a release that Git has ever seen."""

    release: str
    generation: int
    evidence: Digest | None


def needed(states: Iterable[ReleaseState], history: Iterable[CommittedRelease]) -> Needed:
    """Everything that must stay."""
    states, history = tuple(states), tuple(history)
    slotted = [
        (state, occupant)
        for state in states
        for slot in (Slot.A, Slot.B)
        if (occupant := state.occupant(slot)) is not None
    ]
    candidates: list[Candidate] = [occupant.candidate for _, occupant in slotted]
    alive: dict[str, set[str]] = {}
    for state, occupant in slotted:
        alive.setdefault(f"{state.model}-{state.environment}", set()).add(occupant.release)
    for state in states:
        if state.last is not None:
            alive.setdefault(f"{state.model}-{state.environment}", set()).add(state.last.release)
    traces = {
        name: {commit.generation for commit in history if commit.release in releases}
        for name, releases in alive.items()
    }
    denied = {denial.candidate for state in states for denial in state.denylist}
    evidence = {occupant.evidence for _, occupant in slotted}
    evidence |= {commit.evidence for commit in history if commit.evidence is not None}
    evidence |= {verdict.report for state in states for verdict in state.verdicts}
    evidence |= {d.verdict for state in states for d in state.denylist if d.verdict is not None}
    return Needed(
        images=frozenset(
            image.digest
            for candidate in candidates
            for image in (candidate.model, candidate.runtime)
        ),
        candidates=frozenset({c.digest for c in candidates} | denied),
        evidence=frozenset(evidence),
        traces={name: frozenset(generations) for name, generations in traces.items()},
    )


def digests_in(document: Any) -> frozenset[Digest]:
    """Every digest that is named anywhere in a JSON value."""
    if isinstance(document, str):
        return frozenset(Digest(found) for found in _DIGEST.findall(document))
    if isinstance(document, Mapping):
        return frozenset().union(
            *map(digests_in, document.keys()), *map(digests_in, document.values())
        )
    if isinstance(document, list | tuple):
        return frozenset().union(*map(digests_in, document))
    return frozenset()


def outlives(record: Mapping[str, Any], needs: Needed) -> bool:
    """Whether a step's record stays whatever its age: it is none that only saves work, or it is about what is needed."""
    key = record.get("key")
    step = key.get("step") if isinstance(key, Mapping) else None
    if step not in MADE_AGAIN:
        return True
    return bool(digests_in(record) & (needs.images | needs.candidates))
