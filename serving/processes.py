"""Processes that outlive the one that started them: named by pid and start time, ended by group.

A pid alone is no name: the kernel gives it out again. The pid with the start time (in clock ticks since boot, as the
kernel keeps it, so that a stepped wall clock changes nothing) is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STATE, _START_TIME = 0, 19
"""Positions in /proc/<pid>/stat after the command's closing parenthesis (proc(5))."""


@dataclass(frozen=True)
class ProcessId:
    """A process for good: `start` is its start time in clock ticks since boot."""

    pid: int
    start: int

    def alive(self) -> bool:
        """Whether it runs. A zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_START_TIME]) == self.start and (
            fields[_STATE] not in ("Z", "X")
        )  # fmt: skip

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The running process with this pid, or none."""
        fields = _stat(pid)
        if fields is None or fields[_STATE] in ("Z", "X"):
            return None
        return cls(pid=pid, start=int(fields[_START_TIME]))


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text[text.rindex(")") + 2 :].split()


def marked(name: str, value: str) -> Iterator[ProcessId]:
    """Running processes of this user that were started with `name=value` in their environment (or inherited it)."""
    wanted = f"{name}={value}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            process = ProcessId.of(int(entry.name))
            if process is not None:
                yield process


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.decode(errors="replace").partition("=") for item in raw.split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def signal_group(process: ProcessId, signum: signal.Signals) -> None:
    """Signals the process group that `process` leads, if it is still the same one.

    A leader that is gone may have left members behind; they keep the group's number from being given out again, so the
    group is signalled then too, but only if no other process has taken the pid.
    """
    now = ProcessId.of(process.pid)
    if now is not None and now != process:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)


def signal_leader(process: ProcessId, signum: signal.Signals) -> None:
    """Signals the one process, as a container's first process is: it ends its own workers in its own way."""
    if process.alive():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signum)


def end(process: ProcessId, *, term_seconds: float) -> None:
    """SIGTERM to the leader, `term_seconds` later SIGKILL to what is left of its group. Blocks until it is gone."""
    if process.alive():
        signal_leader(process, signal.SIGTERM)
        deadline = time.monotonic() + term_seconds
        while process.alive() and time.monotonic() < deadline:
            reap(process.pid)
            time.sleep(0.02)
    signal_group(process, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while process.alive() and time.monotonic() < deadline:
        reap(process.pid)
        time.sleep(0.02)
    reap(process.pid)


def reap(pid: int) -> int | None:
    """Buries a dead child of this process; its exit code, negative for a signal. None: not dead, or not a child."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if found else None


async def wait_exit(process: ProcessId) -> None:
    """Returns when the process has ended, be it a child of this one or not. Reaping a child is the caller's."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:
        while process.alive():  # an old kernel, or no descriptor left
            await asyncio.sleep(0.1)
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def notice() -> None:
        if not ended.done():
            ended.set_result(None)

    try:
        # Only now: the descriptor is of this process for good, unless the pid was already another's.
        if process.alive():
            loop.add_reader(fd, notice)
            await ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)
