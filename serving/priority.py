"""Model servers leave the processor to the gateway and the control plane when both want it. Standard library only."""

from __future__ import annotations

import contextlib
import os

NICENESS = 5


def lower_priority(pid: int) -> None:
    """Of the leader of a new session; children that are yet to come inherit it.

    Where the kernel groups sessions for scheduling (autogroup), niceness counts only within a session, and the session's
    group has a niceness of its own.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as group:
        group.write(str(NICENESS))
