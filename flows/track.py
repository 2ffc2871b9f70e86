"""Look at the sources of tracked models and start the releases that follow: by schedule, by webhook, or by hand."""

from __future__ import annotations

import logging
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from flows.release import release
from lockgate.domain.steps import ReleaseOutcome
from lockgate.domain.tracks import Pinned, Track, TrackedEnvironment, TrackedRelease
from lockgate.errors import LockgateError
from lockgate.settings import Settings
from tasks import tracking
from tasks.failures import followed
from tasks.lease import release_alone
from tasks.reporting import record_outcome
from tasks.tracking import TrackOutcome

logger = logging.getLogger("lockgate.track")

MAX_ATTEMPTS = 5
"""Runs of one release that ended without an end: after these a person has to look."""


@flow(
    name="release-tracked",
    flow_run_name="release-{tracked.request.spec.model}-{tracked.request.spec.environment}",
)
def release_tracked(tracked: TrackedRelease) -> ReleaseOutcome:
    """The release flow, and a record of how it ended, so that the same revision is not asked for again. One of a model in an
    environment at a time."""
    try:
        spec = tracked.request.spec
        with release_alone(spec.model, spec.environment), followed(Settings(), spec):
            outcome = release(tracked.request)
    except LockgateError as error:
        tracking.remember_failure(tracked, error)
        raise
    tracking.remember(tracked, outcome)
    if outcome.result != "already_stable":
        # Refusals are in no commit: the report finds them in the workspace of whoever ran the release.
        record_outcome(Settings(), outcome)
    return outcome


@flow(name="track", flow_run_name="track-{model}")
def track(model: str | None = None, environment: str | None = None) -> list[TrackOutcome]:
    """Resolve what is followed at the source, and start what is neither released nor refused yet and not frozen.

    One model or all; all its environments in order or, named by a person, one. The model's name is the only thing that
    comes from outside: source, revision and spec are read here. Safe to repeat.

    Raises:
        UsageError: the model is not tracked, or has no such environment.
        LockgateError: something could not be looked at; the others were.
    """
    outcomes: list[TrackOutcome] = []
    for tracked in tracking.read_tracks(model):
        outcomes += _look(tracked, environment)
    for outcome in outcomes:
        logger.info("%s", outcome.as_text())
    failed = [outcome.as_text() for outcome in outcomes if outcome.action == "failed"]
    if failed:
        raise LockgateError("; ".join(failed), hint="the next look tries again")
    return outcomes


def _look(tracked: Track, only: str | None) -> list[TrackOutcome]:
    def failed(environment: str | None, error: LockgateError) -> TrackOutcome:
        return TrackOutcome(
            model=tracked.model, environment=environment, action="failed", reason=error.message
        )

    environments = tracking.chosen(tracked, only)
    try:
        newest = tracking.resolve_followed(tracked)
    except LockgateError as error:
        return [failed(None, error)]
    outcomes = []
    for environment in environments:
        try:
            outcomes.append(_look_in(tracked, environment, newest, asked=only is not None))
        except LockgateError as error:
            outcomes.append(failed(environment.name, error))
    return outcomes


def _look_in(
    tracked: Track, environment: TrackedEnvironment, newest: Pinned, *, asked: bool
) -> TrackOutcome:
    found = tracking.consider(tracked, environment, newest, asked)
    release, decision = found.release, found.decision
    facts: dict[str, Any] = {"model": tracked.model, "environment": environment.name}
    if release is not None:
        facts["revision"] = str(release.pinned.revision)
    if release is None or not decision.start:
        return TrackOutcome(action="skipped", reason=decision.reason, **facts)
    if Settings().step_runner == "inline":
        outcome = release_tracked(release)
        reason = f"{outcome.result}: {outcome.reason}"
        return TrackOutcome(action="released", reason=reason, result=outcome.result, **facts)
    run = _start(release)
    if run is None:
        reason = f"{MAX_ATTEMPTS} runs came to no end: read their logs, then `lockgate release`"
        return TrackOutcome(action="failed", reason=reason, **facts)
    reason = f"flow run {run.name}"
    return TrackOutcome(action="started", reason=reason, flow_run=str(run.id), **facts)


def _start(release: TrackedRelease) -> FlowRun | None:
    """The flow run of this release that goes on, or a new one. Prefect makes at most one for each idempotency key, so that
    two who start at once start the same. None after too many that ended."""
    for attempt in range(MAX_ATTEMPTS):
        run = cast(
            FlowRun,
            run_deployment(
                "release-tracked/release-tracked",
                parameters={"tracked": release.model_dump(mode="json")},
                idempotency_key=f"lockgate-{release.key.hex}-{attempt}",
                timeout=0,
                as_subflow=False,
            ),
        )
        if run.state is None or not run.state.is_final():
            return run
    return None
