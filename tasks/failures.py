"""A release that could not be carried out leaves a log and a record, as one that was refused leaves its outcome.

Git knows nothing of it, since nothing was committed: both lie in the workspace of whoever ran it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from lockgate.domain.base import Frozen
from lockgate.domain.spec import ReleaseSpec
from lockgate.errors import LockgateError
from lockgate.settings import Settings
from tasks.events import FAILED, tell

logger = logging.getLogger("lockgate.release")


class FailedRelease(Frozen):
    """How a release came to no end."""

    model: str
    environment: str
    source: str
    at: AwareDatetime
    error: str
    """Name of the error's type."""
    exit_code: int
    step: str | None = None
    message: str
    log: str | None = None
    next_step: str


def release_log(settings: Settings, model: str, environment: str) -> Path:
    """Every line that the newest release of a model here has logged; the one before it lies beside."""
    return settings.layout.logs / f"release-{model}-{environment}.log"


@contextmanager
def followed(settings: Settings, spec: ReleaseSpec) -> Iterator[None]:
    """Keep the log of the release that the block carries out and, where it ends with an error, a record of that, for `lockgate
    explain`. The error that passes names a log in any case."""
    log = release_log(settings, spec.model, spec.environment)
    record = _record(settings, spec.model, spec.environment)
    with _logged(log):
        try:
            yield
        except LockgateError as error:
            error.log = error.log or log
            logger.debug("%s", error, exc_info=error)
            failed = FailedRelease(
                model=spec.model, environment=spec.environment, source=spec.source,
                at=datetime.now(UTC), error=type(error).__name__, exit_code=error.exit_code,
                step=error.step, message=error.message, log=str(error.log), next_step=error.next_step,
            )  # fmt: skip
            _write(record, failed)
            told = failed.model_dump(mode="json", exclude={"model", "environment"})
            tell(FAILED, spec.model, spec.environment, **told)
            raise
        except BaseException as error:
            logger.debug("%r", error, exc_info=error)
            raise
        record.unlink(missing_ok=True)


def last_failure(settings: Settings, model: str, environment: str) -> FailedRelease | None:
    """How the newest release of the model here failed; None where it came to an end, or is not readable."""
    path = _record(settings, model, environment)
    try:
        return FailedRelease.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        logger.warning("the failure in %s cannot be read: %s", path, error)
        return None


def failed_models(settings: Settings) -> list[tuple[str, str]]:
    """Model and environment of every release whose newest run here failed."""
    found = []
    directory = settings.layout.reports / "failures"
    for path in sorted(directory.glob("*/*.json")) if directory.is_dir() else []:
        found.append((path.parent.name, path.stem))
    return found


def _record(settings: Settings, model: str, environment: str) -> Path:
    return settings.layout.reports / "failures" / model / f"{environment}.json"


def _write(path: Path, failed: FailedRelease) -> None:
    """A disk that is full says so by the error that is under way, not by another one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(failed.model_dump_json())
        temporary.replace(path)
    except OSError as error:
        logger.warning("the failure could not be recorded in %s: %s", path, error)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """All of Lockgate's own lines also into `path`, also those that a terminal does not show."""
    root = logging.getLogger("lockgate")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_suffix(".previous.log"))
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        logger.warning("there will be no log in %s: %s", path, error)
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level, others = root.level, [(shown, shown.level) for shown in root.handlers]
    # The logger lets debug lines through for the file; the terminal goes on showing what it showed.
    for shown, threshold in others:
        shown.setLevel(max(threshold, level))
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(level)
        for shown, threshold in others:
            shown.setLevel(threshold)
