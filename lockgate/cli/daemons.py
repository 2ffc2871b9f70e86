"""Background processes of a workspace: recorded by pid and start time, started once, ended by whoever asks."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockgate.errors import ClusterError
from serving.processes import ProcessId, end

STOP_SECONDS = 15.0


class Daemon:
    """One background process with a session, a log and a record of its own in `directory`."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.log = directory / f"{name}.log"
        self._record = directory / f"{name}.json"

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """One command at a time looks and starts."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def process(self) -> ProcessId | None:
        """The running process, if there is one."""
        record = self.record()
        if record is None:
            return None
        process = ProcessId(pid=record["pid"], start=record["start"])
        return process if process.alive() else None

    def record(self) -> dict[str, Any] | None:
        """What was written down at the start; None if nothing readable was."""
        try:
            record = json.loads(self._record.read_text())
            return {**record, "pid": int(record["pid"]), "start": int(record["start"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], **facts: Any
    ) -> ProcessId:
        """Start it; `facts` are kept in the record."""
        with self.log.open("ab") as output:
            child = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        process = ProcessId.of(child.pid)
        if process is None:
            raise ClusterError(f"{self.name} ended at once", log=self.log)
        record = {"pid": process.pid, "start": process.start, **facts}
        temporary = self._record.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._record)
        return process

    def stop(self) -> bool:
        """End it and its children. Returns whether it was running."""
        process = self.process()
        if process is not None:
            end(process, term_seconds=STOP_SECONDS)
        self._record.unlink(missing_ok=True)
        return process is not None
