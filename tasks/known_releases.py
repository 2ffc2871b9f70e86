"""Releases that a person names: by id, by candidate, or as the newest of a model; from Git and from this workspace."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.release_state import Occupant, ReleaseState
from lockgate.domain.steps import ReleaseOutcome
from lockgate.errors import UsageError
from tasks.failures import FailedRelease, failed_models, last_failure
from tasks.reporting import recorded_outcomes
from tasks.workspace import Workspace

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")
_NAMED = 5


@dataclass(frozen=True)
class KnownRelease:
    """One release, and what is at hand of it."""

    model: str
    environment: str
    at: datetime
    """When it was last heard of."""
    release: str | None = None
    """Its id; None where Git knows nothing of it."""
    candidate: Digest | None = None
    commits: tuple[HistoryEntry, ...] = ()
    """Oldest first."""
    outcome: ReleaseOutcome | None = None
    failure: FailedRelease | None = None

    @property
    def name(self) -> str:
        if self.release is not None:
            return self.release
        if self.candidate is not None:
            return f"{self.model}-{self.candidate.short}"
        return self.model


@dataclass
class ReleaseIndex:
    """Every release that Git or this workspace knows of. What Git holds is read once for each model."""

    workspace: Workspace
    environment: str | None = None
    """Only these; all if None."""
    _found: list[KnownRelease] | None = field(default=None, init=False)

    def find(self, text: str) -> KnownRelease:
        """The release that `text` names: its id, at least six digits of its candidate's digest, a model, whose newest is taken,
        or `MODEL@stable`.

        Raises:
            UsageError: there is none, or in more than one environment.
        """
        known = self.known()
        model, at, role = text.partition("@")
        if at and role == "stable":
            return self._stable(model)
        named = [k for k in known if text in (k.release, k.name)]
        if prefix := _PREFIX.fullmatch(text):
            named += [k for k in known if k.candidate and k.candidate.hex.startswith(prefix[1])]
        named = named or [k for k in known if k.model == text]
        if not named:
            newest = ", ".join(k.name for k in known[::-1][:_NAMED]) or "there are none"
            raise UsageError(f"no release is known as {text}", hint=f"the newest: {newest}")
        candidates = {k.candidate for k in named if k.candidate and k.model != text}
        environments = sorted({k.environment for k in named})
        if len(candidates) > 1 and text not in {k.name for k in named}:
            names = ", ".join(sorted({k.name for k in named}))
            raise UsageError(f"{text} is the beginning of several: {names}")
        if len(environments) > 1:
            raise UsageError(
                f"{text} was released in {', '.join(environments)}", hint="name one by --env"
            )
        # The newest word on it counts; a release that met traffic says more than its refusal before.
        return named[-1]

    def _stable(self, model: str) -> KnownRelease:
        """What serves of a model now."""
        serving = {
            (state.environment, occupant.release)
            for state in self.workspace.gitops.states()
            if state.model == model and state.stable is not None
            if (occupant := state.occupant(state.stable)) is not None
        }
        found = [k for k in self.known() if (k.environment, k.release) in serving]
        if len(found) != 1:
            places = ", ".join(sorted(k.environment for k in found))
            raise UsageError(
                f"{model} is stable in {places}" if found else f"nothing of {model} is stable",
                hint="name one by --env" if found else "`lockgate status` says what is",
            )
        return found[0]

    def before(self, known: KnownRelease) -> KnownRelease | None:
        """The release whose candidate was stable when the gates, or the judge, held this one against it."""
        if known.outcome is not None and known.outcome.compared_with is not None:
            stable: Digest | None = known.outcome.compared_with
        else:
            state = self.first_state(known)
            occupant = state.occupant(state.stable) if state and state.stable else None
            stable = occupant.candidate.digest if occupant is not None else None
        if stable is None or stable == known.candidate:
            return None
        return next((k for k in self.known()[::-1] if k.candidate == stable and k.release), None)

    def first_state(self, known: KnownRelease) -> ReleaseState | None:
        """As the release's first commit left it; None where it has none."""
        return self.state(known, 0)

    def last_state(self, known: KnownRelease) -> ReleaseState | None:
        """As the release's last commit left it."""
        return self.state(known, -1)

    def state(self, known: KnownRelease, number: int) -> ReleaseState | None:
        if not known.commits:
            return None
        commit = known.commits[number].commit
        return self.workspace.gitops.state_at(commit, known.model, known.environment)

    def occupant(self, known: KnownRelease) -> Occupant | None:
        """The release in its slot."""
        state = self.first_state(known)
        slots = (state.a, state.b) if state is not None else ()
        return next((o for o in slots if o is not None and o.release == known.release), None)

    def candidate(self, known: KnownRelease) -> Candidate | None:
        """All of the candidate."""
        if known.outcome is not None:
            return known.outcome.candidate
        occupant = self.occupant(known)
        return occupant.candidate if occupant is not None else None

    def known(self) -> list[KnownRelease]:
        """All of them, in the order in which they were last heard of."""
        if self._found is None:
            repository = self.workspace.gitops
            repository.sync()
            places = {(s.model, s.environment) for s in repository.states()}
            settings = self.workspace.settings
            places |= set(failed_models(settings))
            places |= {
                (o.outcome.model, o.outcome.environment) for o in recorded_outcomes(settings)
            }
            chosen = [p for p in sorted(places) if self.environment in (None, p[1])]
            found = [known for place in chosen for known in self._of(*place)]
            self._found = sorted(found, key=lambda k: k.at)
        return self._found

    def _of(self, model: str, environment: str) -> Iterable[KnownRelease]:
        settings = self.workspace.settings
        outcomes = recorded_outcomes(settings, model, environment)
        newest = {o.outcome.candidate.digest: o for o in outcomes}
        by_release: dict[str, list[HistoryEntry]] = {}
        for entry in reversed(self.workspace.gitops.history(model, environment)):
            if entry.release is not None and entry.transition is not None:
                by_release.setdefault(entry.release, []).append(entry)
        for release, commits in by_release.items():
            candidate = Digest(commits[0].trailers["Candidate"])
            recorded = newest.get(candidate)
            yield KnownRelease(
                model=model, environment=environment, at=datetime.fromisoformat(commits[-1].at),
                release=release, candidate=candidate, commits=tuple(commits),
                outcome=recorded.outcome if recorded else None,
            )  # fmt: skip
        for recorded in outcomes:
            if recorded.outcome.result == "refused":
                yield KnownRelease(
                    model=model, environment=environment, at=recorded.at,
                    candidate=recorded.outcome.candidate.digest, outcome=recorded.outcome,
                )  # fmt: skip
        failure = last_failure(settings, model, environment)
        if failure is not None:
            yield KnownRelease(model=model, environment=environment, at=failure.at, failure=failure)
