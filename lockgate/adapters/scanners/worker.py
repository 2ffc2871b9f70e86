"""Work on untrusted bytes in a process of its own: JSON lines out, limits on time and memory, no environment to steal."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lockgate.errors import ScannerError
from lockgate.supervision import Ended, run_program

Progress = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and what is being done."""

MAX_LINE = 1 << 20
MAX_LINES = 100_000


@dataclass(frozen=True)
class WorkerAnswer:
    """What a worker said before it ended. `ready`: it had started and read its job, so a later end is the job's doing."""

    events: tuple[dict[str, Any], ...]
    ended: Ended

    @property
    def ready(self) -> bool:
        return any(event.get("event") == "ready" for event in self.events)

    @property
    def finished(self) -> bool:
        return self.ended.code == 0 and any(e.get("event") == "finished" for e in self.events)


def call_worker(module: str, job: dict[str, Any], *, log: Path, timeout: float) -> WorkerAnswer:
    """Run `python -m module JOBFILE` and collect its events. Raises `ScannerError` if the process cannot be started."""
    events: list[dict[str, Any]] = []

    def take(line: str) -> bool:
        if not line.startswith('{"event"') or len(line) > MAX_LINE or len(events) >= MAX_LINES:
            return False
        try:
            events.append(json.loads(line))
        except ValueError:
            return False
        return True

    with TemporaryDirectory(prefix="lockgate-scan-") as scratch:
        job_file = Path(scratch, "job.json")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        try:
            ended = run_program(
                [sys.executable, "-m", module, str(job_file)],
                log=log,
                timeout=timeout,
                directory=Path(scratch),
                on_line=take,
            )
        except OSError as error:
            raise ScannerError(
                f"the scanner process {module} cannot be started: {error}"
            ) from error
    return WorkerAnswer(tuple(events), ended)


def begin(memory: int, cpu_seconds: int | None, file_size: int = 64 << 20) -> dict[str, Any]:
    """Called first by a worker: takes the environment away, sets the limits (bytes, seconds), returns the job.

    `cpu_seconds`: None where the job says it. `file_size` is the largest file it may write, in bytes: its own log on standard error.
    """
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # What importing took on a slow machine is not the job's.
    seconds = int(job["cpu_seconds"]) if cpu_seconds is None else cpu_seconds
    limit = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say("ready")
    return dict(job)


def say(event: str, **values: Any) -> None:
    """One event to the caller."""
    line = json.dumps({"event": event, **values}, allow_nan=False)
    sys.stdout.write(line[:MAX_LINE] + "\n")
    sys.stdout.flush()
