"""Progress of long work, told once and shown twice: to the terminal's listener and as a Prefect progress artifact."""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

ARTIFACT_SECONDS = 3.0

logger = logging.getLogger("lockgate.progress")

Report = Callable[[float, float | None], None]
"""`report(done, total)`: in any one unit; a total of None or 0 is unknown."""


def as_fraction(report: Report) -> Callable[[float, str], None]:
    """The form in which some adapters tell progress: a fraction from 0 to 1, and what is being done."""
    return lambda fraction, _what: report(fraction, 1.0)


class Listener(Protocol):
    """Somebody who shows progress, e.g. a terminal."""

    def progressed(self, title: str, done: float, total: float | None) -> None: ...

    def finished(self, title: str) -> None: ...


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` about all progress in this process while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A reporter for one piece of long work. Showing progress never fails the work: the server may be briefly away."""
    artifact = _Artifact(title) if TaskRunContext.get() is not None else None

    def report(done: float, total: float | None = None) -> None:
        for listener in _listeners:
            listener.progressed(title, done, total)
        if artifact is not None:
            artifact.update(done, total)

    try:
        yield report
    finally:
        for listener in _listeners:
            listener.finished(title)


class _Artifact:
    def __init__(self, title: str) -> None:
        self.title = title
        self.id: UUID | None = None
        self.told = time.monotonic()
        # Some adapters report from a thread of their own, which does not know the task run.
        self.run = contextvars.copy_context()

    def update(self, done: float, total: float | None) -> None:
        now = time.monotonic()
        complete = bool(total) and done >= (total or 0)
        if not total or (now - self.told < ARTIFACT_SECONDS and not (complete and self.id)):
            return
        self.told = now
        percent = max(0.0, min(100.0, 100.0 * done / total))
        try:
            if self.id is None:
                made = self.run.run(
                    create_progress_artifact, progress=percent, description=self.title
                )
                self.id = made if isinstance(made, UUID) else None
            else:
                self.run.run(update_progress_artifact, artifact_id=self.id, progress=percent)
        except Exception as error:
            logger.warning("progress of %r could not be recorded: %s", self.title, error)
