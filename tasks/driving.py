"""Drive a release: read the state from Git, look until something follows, commit what follows.

The decisions are `lockgate.domain.rollout`'s. A driver keeps nothing that another could not find again in Git, the store or
the step's trace.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from lockgate.adapters.git import Build, CommitResult, Render
from lockgate.domain.gitops import verdict_path
from lockgate.domain.release_state import TERMINAL_PHASES, Phase, ReleaseState
from lockgate.domain.rollout import (
    AbortRequested,
    Look,
    Observation,
    Transition,
    Wait,
    advance,
)
from lockgate.errors import LockgateError, UsageError
from serving.manifests import render
from tasks.retries import TRANSIENT
from tasks.watching import Watcher
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")

SYNC_SECONDS = 3.0
TELL_SECONDS = 15.0
"""Reasons for waiting change with every scrape; a log wants fewer."""


@task(name="read-state", cache_policy=NO_CACHE, **TRANSIENT)
def read_state(model: str, environment: str) -> ReleaseState:
    """The newest state at the remote."""
    repository = Workspace.current().gitops
    repository.sync()
    return repository.read_state(model, environment)


@task(name="releases-under-way", cache_policy=NO_CACHE, **TRANSIENT)
def releases_under_way(environment: str, model: str | None) -> list[ReleaseState]:
    """States that somebody has to drive on: neither finished nor waiting for a person only."""
    repository = Workspace.current().gitops
    repository.sync()
    return [
        state
        for state in repository.states()
        if state.environment == environment
        and model in (None, state.model)
        and state.phase not in TERMINAL_PHASES
    ]


def describe(state: ReleaseState) -> str:
    """One line about where a release stands."""
    if state.phase is Phase.HELD:
        return f"held: {state.held_reason}"
    if state.phase in TERMINAL_PHASES and state.last is not None:
        return f"{state.last.release} {state.last.outcome}: {state.last.reason}"
    return f"{state.phase}, generation {state.generation}"


@task(
    name="observe", task_run_name="observe-{state.phase}-{state.generation}", cache_policy=NO_CACHE
)
def observe(state: ReleaseState) -> Look | None:
    """Look at the release's slots and metrics until something follows from what is seen, and return that look.

    None when nothing is under way any more, and when only a person can bring the release on: then one look is taken, for
    the dangers that end a release in every phase, and the driver may go.
    """
    if state.phase in TERMINAL_PHASES:
        return None
    watcher = Watcher(Workspace.current(), state)
    told = _Told(state)
    while True:
        look = watcher.look()
        answer = advance(state, look, datetime.now(UTC))
        if isinstance(answer, Transition):
            watcher.keep_report()
            return look
        told.about(answer)
        if answer.finished or state.phase in (Phase.AWAITING_APPROVAL, Phase.HELD):
            return None
        watcher.rest()
        if watcher.moved_on():
            return look


class _Told:
    """Says new reasons now and then, and pages once."""

    def __init__(self, state: ReleaseState) -> None:
        self.state = state
        self.reason: str | None = None
        self.at = float("-inf")
        self.pages: set[str] = set()

    def about(self, answer: Wait) -> None:
        if answer.page is not None and answer.page not in self.pages:
            self.pages.add(answer.page)
            logger.error("PAGE: %s", answer.page)
        if answer.reason != self.reason and time.monotonic() - self.at > TELL_SECONDS:
            self.reason, self.at = answer.reason, time.monotonic()
            logger.info("%s: %s", self.state.phase, answer.reason)


@task(name="commit-transition", cache_policy=NO_CACHE, **TRANSIENT)
def commit_observation(state: ReleaseState, observation: Observation) -> ReleaseState:
    """Commit what follows from an observation, on top of the newest state; nothing where it follows no longer. Returns the
    newest state in either case."""
    return commit(state.model, state.environment, observation)


def commit(model: str, environment: str, observation: Observation) -> ReleaseState:
    """The same outside of a task."""
    workspace = Workspace.current()
    pages: list[str] = []

    def build(newest: ReleaseState) -> Transition | Wait:
        answer = advance(newest, observation, datetime.now(UTC))
        if answer.page is not None:
            pages.append(answer.page)
        return answer

    result = apply(workspace, model, environment, build)
    for page in pages:
        logger.error("PAGE: %s", page)
    return result.state


def apply(workspace: Workspace, model: str, environment: str, build: Build) -> CommitResult:
    """Commit one transition with its rendered manifests and its verdict's report, then ask the agents to look at once."""
    started = time.monotonic()

    def extra_files(transition: Transition) -> dict[str, str]:
        if transition.verdict is None:
            return {}
        report = workspace.records.get_document(transition.verdict.report)
        path = verdict_path(model, environment, transition.verdict.report)
        return {str(path): json.dumps(report, indent=1, sort_keys=True) + "\n"}

    result = workspace.gitops.commit_transition(
        model, environment, build, rendering(workspace),
        extra_files=extra_files,
    )  # fmt: skip
    if result.transition is not None:
        logger.info("committed: %s (%.1f s)", result.transition.subject, time.monotonic() - started)
        _ask_to_sync(workspace, result.commit)
    return result


def rendering(workspace: Workspace) -> Render:
    """How a state becomes manifests."""
    return lambda state, root: render(state, root, kubectl=workspace.kubectl)


def _ask_to_sync(workspace: Workspace, commit: str) -> None:
    """Tell the agent at once, and wait a little to see the commit in force: that time is the sync latency."""
    started = time.monotonic()
    try:
        applied = workspace.cluster().sync(commit, timeout_seconds=SYNC_SECONDS)
    except LockgateError as error:
        # Only a matter of seconds: agents look by themselves too.
        logger.warning("the agent could not be asked to look at once: %s", error.message)
        return
    if applied:
        logger.info("in force after %.2f s", time.monotonic() - started)


@task(name="abort-release", cache_policy=NO_CACHE, **TRANSIENT)
def commit_abort(model: str, environment: str, reason: str, requested_by: str) -> ReleaseState:
    """End the release under way because a person says so: traffic back to stable, the candidate denylisted.

    Raises:
        UsageError: nothing is under way.
    """
    workspace = Workspace.current()
    workspace.gitops.sync()
    state = workspace.gitops.read_state(model, environment)
    release = state.release_under_way
    if release is None:
        raise UsageError(
            f"no release of {model} is under way in {environment} ({state.phase}): nothing to roll back",
            hint="to serve an older version again, release its spec",
        )
    slots = Watcher(workspace, state).slots()
    return commit(
        model, environment,
        AbortRequested(
            release=release, by=requested_by, reason=reason, deny=True, a=slots.a, b=slots.b
        ),
    )  # fmt: skip
