"""What the terminal shows: log lines, progress bars, results and errors."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lockgate.errors import EXIT_FAILURE, LockgateError, UsageError

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def configure_logging(verbose: bool) -> None:
    """Lockgate's own lines to stderr; Prefect's only where they warn. Called before `prefect` is imported."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
    handler = RichHandler(
        console=err, show_path=False, show_level=verbose, omit_repeated_times=False,
        log_time_format="%H:%M:%S", markup=False,
    )  # fmt: skip
    logger = logging.getLogger("lockgate")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False


def print_json(data: Any) -> None:
    """One JSON document on standard output, for machines."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def report_error(error: LockgateError) -> int:
    """Tell an operator what happened, and with which code to exit."""
    err.print(f"[bold red]{type(error).__name__}[/]", highlight=False)
    said = [error.message]
    if error.step is not None:
        said.append(f"step: {error.step}")
    if error.log is not None:
        said.append(f"log: {error.log}")
    said.append(f"next: {error.next_step}")
    err.print("\n".join(said), markup=False, highlight=False)
    return error.exit_code


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn Lockgate's errors into a message and an exit code. Anything else is a defect and keeps its traceback."""
    try:
        yield
    except LockgateError as error:
        raise SystemExit(report_error(error)) from error
    except KeyboardInterrupt:
        err.print("interrupted: run the same command again, it goes on where it stopped")
        raise SystemExit(EXIT_FAILURE) from None


def invalid(path: object, error: ValidationError) -> UsageError:
    """A `UsageError` that lists every wrong field of a document."""
    lines = [f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()]
    return UsageError(f"{path} is not valid:\n  " + "\n  ".join(lines))


class Bars:
    """Progress bars on a terminal, a line every tenth elsewhere (`tasks.progress.Listener`)."""

    def __init__(self) -> None:
        self._live = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), console=err, transient=True,
        )  # fmt: skip
        self._bars: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}

    def __enter__(self) -> Bars:
        if err.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def progressed(self, title: str, done: float, total: float | None) -> None:
        if err.is_terminal:
            if title not in self._bars:
                self._bars[title] = self._live.add_task(title, total=total or None)
            self._live.update(self._bars[title], completed=done, total=total or None)
        elif total:
            tenth = int(10 * done / total)
            if tenth > self._tenths.get(title, 0) and 0 < tenth < 10:
                self._tenths[title] = tenth
                logging.getLogger("lockgate").debug("%s: %d%%", title, 10 * tenth)

    def finished(self, title: str) -> None:
        bar = self._bars.pop(title, None)
        if bar is not None:
            self._live.remove_task(bar)
        self._tenths.pop(title, None)
