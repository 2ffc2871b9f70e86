"""Several releases driven at once: each is watched for minutes, or for days, and none waits for another one's end."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from threading import Thread

from lockgate.domain.release_state import ReleaseState

logger = logging.getLogger("lockgate.reconcile")

LOOK_SECONDS = 30.0
"""The schedule of `reconcile` (every minute) begins no second run beside one that drives something."""

Release = tuple[str, str]
"""Model and environment."""


def drive_each(
    found: Iterable[ReleaseState],
    drive: Callable[[ReleaseState], str],
    find: Callable[[], Iterable[ReleaseState]],
    *,
    every: float = LOOK_SECONDS,
) -> dict[Release, str | BaseException]:
    """Call `drive` with every release, each in a thread of its own, until none is driven any more.

    While any is, `find` is asked every so many seconds for what is under way, and what is left alone meanwhile is driven too; what
    was let go before (it waits for a person) only beside one that is driven for longer than that, so that this ends. A release
    is driven by one thread at a time. The threads see the caller's context variables; they are daemons, so that a process that is
    told to end does, and the releases go on from Git.

    Returns what `drive` said last of each release, or how it failed.
    """
    said: queue.SimpleQueue[tuple[Release, str | BaseException]] = queue.SimpleQueue()
    driven: dict[Release, float] = {}
    ended: dict[Release, str | BaseException] = {}

    def begin(states: Iterable[ReleaseState]) -> None:
        now = time.monotonic()
        busy = any(now - since > every for since in driven.values())
        for state in states:
            release = (state.model, state.environment)
            if release not in driven and (busy or release not in ended):
                driven[release] = now
                arguments = _run, drive, state, said
                Thread(target=copy_context().run, args=arguments, daemon=True).start()

    begin(found)
    look_at = time.monotonic() + every
    while driven:
        try:
            release, answer = said.get(timeout=max(look_at - time.monotonic(), 0.0))
        except queue.Empty:
            try:
                begin(find())
            except Exception as error:  # what is driven is driven on
                logger.warning("looked for nothing new: %s", error)
            look_at = time.monotonic() + every
        else:
            del driven[release]
            ended[release] = answer
    return ended


def lines_of(ended: dict[Release, str | BaseException]) -> list[str]:
    """One line a release. Raises the first error of any."""
    for answer in ended.values():
        if isinstance(answer, BaseException):
            raise answer
    return [f"{model}: {answer}" for (model, _), answer in ended.items()]


def _run(
    drive: Callable[[ReleaseState], str],
    state: ReleaseState,
    said: queue.SimpleQueue[tuple[Release, str | BaseException]],
) -> None:
    answer: str | BaseException
    try:
        answer = drive(state)
    except BaseException as error:  # a lost lease is none of Exception's
        logger.error("%s/%s: %s", state.model, state.environment, error)
        answer = error
    said.put(((state.model, state.environment), answer))
