"""Runs one command and sees to it that it never outlives the process that asked for it.

    python -m serving.supervisor GRACE_SECONDS COMMAND...

Standard input is a pipe whose other end the asker holds. When the asker closes it, or dies in whatever way (the kernel
closes it then), the command is told to stop, and killed with all its descendants after GRACE_SECONDS. The exit code is the
command's. Only the standard library is imported: this has to be up before the command
can be.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

from serving.priority import lower_priority

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _descendants(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:
                text = stat.read()
                parents[int(entry)] = int(text[text.rindex(b")") + 2 :].split()[1])
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found - {root}
        found |= more


def _kill_descendants() -> None:
    """Being a subreaper, this process is the parent of every orphan below it: none can hide."""
    for _ in range(100):
        left = _descendants(os.getpid())
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def main(argv: list[str]) -> int:
    grace, command = float(argv[0]), argv[1:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    stop_read, stop_write = os.pipe()
    os.set_blocking(stop_write, False)
    signal.set_wakeup_fd(stop_write)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(signum, lambda *_: None)

    inherited = [int(fd) for fd in os.environ.pop("LOCKGATE_INHERITED_FDS", "").split(",") if fd]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=inherited,
        # This process has one thread, so "the death of the parent thread" is its own death.
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    lower_priority(child.pid)
    for fd in inherited:
        os.close(fd)
    stopping = False
    deadline = float("inf")
    watched = [0, stop_read]
    while child.poll() is None:
        ready, _, _ = select.select(watched, [], [], max(0.0, min(deadline - time.monotonic(), 1)))
        stop = 0 in ready and not os.read(0, 4096)
        if stop_read in ready:
            received = os.read(stop_read, 4096)
            stop = stop or any(s in received for s in (signal.SIGTERM, signal.SIGINT))
        if stop and not stopping:
            stopping, deadline = True, time.monotonic() + grace
            watched = [stop_read]
            child.terminate()
        if time.monotonic() >= deadline:
            child.kill()
    _kill_descendants()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
