"""Drive a release: read the state from Git, look until something follows, commit what follows.

The decisions are `lockgate.domain.rollout`'s. A driver keeps nothing that another could not find again in Git, the store or
the step's trace.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from prefect.cache_policies import NO_CACHE

from lockgate.adapters.git import Build, CommitResult, Render
from lockgate.domain.cluster import lagging
from lockgate.domain.digests import Digest
from lockgate.domain.gitops import model_of_state_path, verdict_path
from lockgate.domain.release_state import (
    TERMINAL_PHASES,
    Phase,
    ReleaseState,
    VerdictRef,
)
from lockgate.domain.rollout import (
    AbortRequested,
    Look,
    Observation,
    Rejection,
    Transition,
    TransitionKind,
    Wait,
    advance,
)
from lockgate.domain.rollout.transitions import parse_time
from lockgate.errors import GitError, LockgateError
from serving.manifests import render
from tasks.approving import ask_before, asked_again, somebody_decided
from tasks.events import tell_in_force, tell_transition
from tasks.promotion_requests import attend
from tasks.retries import TRANSIENT
from tasks.step_trace import newest_entry
from tasks.steps import step
from tasks.watching import Watcher
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")

SYNC_SECONDS = 3.0
TELL_SECONDS = 15.0
"""Reasons for waiting change with every scrape; a log wants fewer."""


@step(name="read-state", cache_policy=NO_CACHE, **TRANSIENT)
def read_state(model: str, environment: str) -> ReleaseState:
    """The newest state at the remote."""
    repository = Workspace.current().gitops
    repository.sync()
    return repository.read_state(model, environment)


@step(name="releases-under-way", cache_policy=NO_CACHE, **TRANSIENT)
def releases_under_way(environment: str, model: str | None) -> list[ReleaseState]:
    """States that somebody has to drive on: neither finished nor waiting for a person only.

    One that cannot be read stands in no other one's way.

    Raises:
        GitError: the state of `model` cannot be read; or one in `environment` cannot, and there is no other to drive.
    """
    repository = Workspace.current().gitops
    repository.sync()
    unreadable: list[GitError] = []

    def skip(path: str, error: GitError) -> None:
        logger.error("nobody drives %s: %s", path, error)
        names = model_of_state_path(path)
        if names is not None and names[1] == environment and model in (None, names[0]):
            unreadable.append(error)

    found = [
        state
        for state in repository.states(unreadable=skip)
        if state.environment == environment
        and model in (None, state.model)
        and state.phase not in TERMINAL_PHASES
    ]
    if unreadable and not found:
        raise unreadable[0]
    return found


def describe(state: ReleaseState) -> str:
    """One line about where a release stands."""
    if state.phase is Phase.HELD:
        return f"held: {state.held_reason}"
    if state.phase in TERMINAL_PHASES and state.last is not None:
        return f"{state.last.release} {state.last.outcome}: {state.last.reason}"
    return f"{state.phase}, generation {state.generation}"


@step(
    name="observe", task_run_name="observe-{state.phase}-{state.generation}", cache_policy=NO_CACHE
)
def observe(state: ReleaseState, until: float | None = None) -> Look | None:
    """Look at the release's slots and metrics until something follows from what is seen, and return that look.

    None when nothing is under way any more, and when only a person can bring the release on: then one look is taken, for
    the dangers that end a release in every phase, and the driver may go; but none where the last one was a moment ago and
    nobody has decided since. Likewise past `until` (monotonic clock).
    """
    if state.phase in TERMINAL_PHASES:
        return None
    workspace = Workspace.current()
    attended = _just_looked_at(workspace, state)
    if attended:
        attend(workspace, state)
        if not somebody_decided(workspace, state):
            return None
    watcher = Watcher(workspace, state)
    told, in_force = _Told(state), _InForce(state)
    while True:
        look = watcher.look()
        in_force.seen(look)
        answer = advance(state, look, datetime.now(UTC))
        if isinstance(answer, Transition):
            watcher.keep_report()
            return look
        told.about(answer)
        # Dangers first: no forge is asked before they have been looked for.
        if state.phase is Phase.AWAITING_APPROVAL and not attended:
            attended = True
            attend(workspace, state)
            if look.decision is None and somebody_decided(workspace, state):
                continue
        if answer.finished or state.phase in (Phase.AWAITING_APPROVAL, Phase.HELD):
            return None
        if until is not None and time.monotonic() > until:
            return None
        watcher.rest()
        if watcher.moved_on():
            return look


def _just_looked_at(workspace: Workspace, state: ReleaseState) -> bool:
    """Of a release that waits for a person, maybe for weeks: its trace grows with every look."""
    if state.canary is None or state.phase not in (Phase.AWAITING_APPROVAL, Phase.HELD):
        return False
    newest = newest_entry(workspace.layout.trace(state.model, state.environment, state.began))
    # Where a fail waits for a slot to go back to, it waits no longer than this. What stands in the future says nothing.
    moment = min(30.0, state.canary.outage_budget_seconds / 4)
    return newest is not None and 0 <= time.time() - newest < moment


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


class _InForce:
    """Measures how long a decision takes until the gateway carries it out, where that is longer than a commit waits for it."""

    def __init__(self, state: ReleaseState) -> None:
        self.state = state
        self.lagging = False

    def seen(self, look: Look) -> None:
        """Says it once: at the look that sees it come into force. Who comes later does not know when that was."""
        state, live = self.state, look.live_generation
        if live is None:
            return
        if live < state.generation:
            self.lagging = True
        elif self.lagging:
            self.lagging = False
            # A hold or a question to people is of the same step, and as old as that.
            if state.began == state.generation and state.since is not None:
                seconds = max(0.0, time.time() - parse_time(state.since).timestamp())
                logger.info("in force %.1f s after its commit was made", seconds)
                tell_in_force(state, seconds)


@step(name="commit-transition", cache_policy=NO_CACHE, **TRANSIENT)
def commit_observation(state: ReleaseState, observation: Observation) -> ReleaseState:
    """Commit what follows from an observation, on top of the newest state; nothing where it follows no longer. Returns the
    newest state in either case."""
    return commit(state.model, state.environment, observation)


def commit(model: str, environment: str, observation: Observation) -> ReleaseState:
    """The same outside of a task."""
    return committed(model, environment, observation).state


def committed(model: str, environment: str, observation: Observation) -> CommitResult:
    """The same, with what became of it: a transition, or why there is none."""
    workspace = Workspace.current()
    pages: list[str] = []
    ending: list[str] = []

    def build(newest: ReleaseState) -> Transition | Wait:
        # Of the attempt that lands only: what another one's commit has made moot is nobody's page.
        pages.clear()
        ending.clear()
        seen = asked_again(workspace, newest, observation)
        answer = advance(newest, seen, datetime.now(UTC))
        if answer.page is not None:
            pages.append(answer.page)
        if isinstance(answer, Transition) and answer.kind in ENDINGS:
            ending.append(answer.subject)
        return answer

    ask_before(workspace, model, environment, observation)
    try:
        result = apply(workspace, model, environment, build)
    except LockgateError as error:
        if ending or _wants_an_end(observation):
            what = ending[0] if ending else f"{model}/{environment}: an end of the release"
            logger.error("PAGE: it may not have been committed: %s: %s", what, error.message)
        raise
    for page in pages:
        logger.error("PAGE: %s", page)
    return result


ENDINGS = (TransitionKind.ROLLBACK, TransitionKind.ABORT)


def _wants_an_end(observation: Observation) -> bool:
    """Whether traffic should leave a candidate, as far as the observation alone says."""
    if isinstance(observation, AbortRequested):
        return True
    if not isinstance(observation, Look):
        return False
    verdict = observation.verdict
    if isinstance(observation.decision, Rejection):
        return True
    return verdict is not None and verdict.verdict == "fail"


def apply(
    workspace: Workspace,
    model: str,
    environment: str,
    build: Build,
    manifests: Render | None = None,
    *,
    files: Mapping[str, str] = MappingProxyType({}),
) -> CommitResult:
    """Commit one transition with its rendered manifests, its verdict's report and `files` (text by path from the repository's
    root), then ask the agents to look at once.

    `manifests`: another way of rendering them than `rendering`.
    """
    started = time.monotonic()

    def extra_files(transition: Transition) -> dict[str, str]:
        if transition.verdict is None:
            return dict(files)
        report = _report_of(workspace, transition.verdict)
        if report is None:
            return dict(files)
        path = verdict_path(model, environment, transition.verdict.report)
        return {**files, str(path): json.dumps(report, indent=1, sort_keys=True) + "\n"}

    result = workspace.gitops.commit_transition(
        model, environment, build, manifests or rendering(workspace),
        extra_files=extra_files,
    )  # fmt: skip
    if result.transition is not None:
        logger.info("committed: %s (%.1f s)", result.transition.subject, time.monotonic() - started)
        tell_transition(result.transition, result.commit)
        _ask_to_sync(workspace, result.commit, result.state)
    return result


def _report_of(workspace: Workspace, verdict: VerdictRef) -> Any | None:
    """The whole report of a verdict; None where neither this machine nor the store has it: no transition waits for it."""
    try:
        document = json.loads(workspace.layout.kept_report(verdict.report.hex).read_bytes())
        if Digest.of_json(document) == verdict.report:
            return document
    except (OSError, ValueError):
        logger.debug("report %s is not kept here", verdict.report.short)
    try:
        return workspace.records.get_document(verdict.report)
    except (LockgateError, OSError) as error:
        logger.warning("committed without the report %s: %s", verdict.report.short, error)
        return None


def rendering(workspace: Workspace) -> Render:
    """How a state becomes manifests."""
    return lambda state, root: render(state, root, kubectl=workspace.kubectl)


def _ask_to_sync(workspace: Workspace, commit: str, state: ReleaseState) -> None:
    """Tell the agent at once, and wait a little to see the commit in force: that time is the sync latency. Where it takes
    longer, the driver's looks go on measuring."""
    started = time.monotonic()
    try:
        cluster = workspace.cluster(state.environment)
        if cluster.carry_out(commit, state, timeout_seconds=SYNC_SECONDS):
            seconds = time.monotonic() - started
            logger.info("in force %.1f s after its commit was made", seconds)
            tell_in_force(state, seconds)
            return
        status = cluster.status()
    except LockgateError as error:
        # Only a matter of seconds: agents look by themselves too.
        logger.warning("the agent could not be asked to look at once: %s", error.message)
        return
    missing = lagging(status.models.get(state.model), state)
    said = (status.sync_error,) if status.sync_error is not None else ()
    if missing or said:
        logger.info("not in force after %.0f s: %s", SYNC_SECONDS, "; ".join((*missing, *said)))
