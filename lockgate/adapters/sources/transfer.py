"""What all transfers share: bytes counted, files in parallel, space asked for first, and an error that can be continued."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lockgate.errors import SourceError, StorageFull

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 1 << 20
INCOMPLETE = ".incomplete"
"""Directory in the staging directory for files that have not arrived whole."""
Progress = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and what is being done; from several threads, never at the same time."""


class Interrupted(SourceError):
    """A transfer broke off and can be continued: what has arrived is kept for the next call."""


def require_space(place: Path, needed: int, source: str) -> None:
    """Raises `StorageFull` before anything is written if `needed` bytes do not fit."""
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageFull(
            f"no space left: {source} needs {needed} bytes in {place}, {free} are free",
            hint="free space there, or choose another workspace, and run again",
        )


def in_parallel(work: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """`work` over `items` in threads; the first error stops what has not begun."""
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


class Meter:
    """Counts bytes from several threads and reports the fraction done, at most once a percent."""

    def __init__(self, total: int, doing: str, progress: Progress | None) -> None:
        self._total = max(1, total)
        self._doing = doing
        self._progress = progress
        self._done = 0
        self._told = -1
        self._lock = threading.Lock()

    def add(self, count: float) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done += int(count)
            percent = min(100, 100 * self._done // self._total)
            if percent != self._told:
                self._told = percent
                self._progress(percent / 100, self._doing)
