"""What Git says of releases, as gauges in Prometheus' text format: the other half of every alert on drift."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from lockgate.domain.release_state import TERMINAL_PHASES, ReleaseState, Slot

HELP = {
    "lockgate_release_generation": "Generation of the newest committed state.",
    "lockgate_release_phase": "1 for the phase that the release is in.",
    "lockgate_release_since_seconds": "Unix time at which the present phase or step of a release under way began.",
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
