"""What Git says of releases, as gauges in Prometheus' text format: the other half of every alert on drift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from lockgate.domain.release_state import TERMINAL_PHASES, Phase, ReleaseState, Slot

HELP = {
    "lockgate_release_generation": "Generation of the newest committed state.",
    "lockgate_release_phase": "1 for the phase that the release is in.",
    "lockgate_release_since_seconds": "Unix time at which the present phase or step of a release under way began.",
    "lockgate_canary_decide_by_seconds": "Unix time by which a canary step that is not decided has used up its time budget.",
    "lockgate_slot_candidate": "1 for the candidate that Git has in a slot.",
    "lockgate_route_weight": "Percent of the traffic that Git gives to a slot.",
    "lockgate_denied": "1 for a candidate that is denylisted.",
}
Sample = tuple[str, Mapping[str, str], float]


def samples(states: Iterable[ReleaseState]) -> Iterator[Sample]:
    """Name, labels and value of every gauge."""
    for state in states:
        base = {"model": state.model, "namespace": f"lockgate-{state.environment}"}
        yield "lockgate_release_generation", base, state.generation
        yield "lockgate_release_phase", {**base, "phase": state.phase.value}, 1
        if state.phase not in TERMINAL_PHASES and state.since is not None:
            began = datetime.fromisoformat(state.since).timestamp()
            yield "lockgate_release_since_seconds", base, began
        decide_by = _decide_by(state)
        if decide_by is not None:
            yield "lockgate_canary_decide_by_seconds", base, decide_by
        weights = state.weights()
        for slot in Slot:
            occupant = state.occupant(slot)
            if occupant is not None:
                labels = {**base, "slot": slot.value}
                candidate = {**labels, "candidate": str(occupant.candidate.digest)}
                yield "lockgate_slot_candidate", candidate, 1
                yield "lockgate_route_weight", labels, weights.get(slot, 0)
        for denied in state.denylist:
            yield "lockgate_denied", {**base, "candidate": str(denied.candidate)}, 1


def _decide_by(state: ReleaseState) -> float | None:
    """When the judge's time for this step ends, a metrics outage in it waited out; None where nothing is to be judged, or was.

    A hold for want of a decision leaves the step undecided. One by a person stops no clock either: whoever holds a canary for
    longer than its budget is reminded of it.
    """
    if Phase.CANARY not in (state.phase, state.held_from) or state.handing_over:
        return None
    began = state.resumed or state.since
    if state.canary is None or state.step is None or began is None:
        return None
    step = state.canary.steps[state.step]
    decided = any(v.step == state.step and v.verdict in ("pass", "fail") for v in state.verdicts)
    if decided or step.traffic == "header":
        return None
    budget = max(step.max_seconds, step.min_seconds) + state.canary.outage_budget_seconds
    return datetime.fromisoformat(began).timestamp() + budget


def page(states: Iterable[ReleaseState]) -> str:
    """The whole page, a family after the other."""
    found = list(samples(states))
    lines = []
    for name, meaning in HELP.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
        for sample, labels, value in found:
            if sample == name:
                # Labels are DNS labels, digests and phases: nothing that needs an escape.
                inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
                lines.append(f"{name}{{{inner}}} {value:.15g}")
    return "\n".join(lines) + "\n"
