"""How a worker speaks with the process that started it.

Workers run in the quantization environment, which has neither Lockgate nor its dependencies: these files import the
standard library and the torch stack only. The job comes as one JSON line on standard input; progress, the result or an
error goes back as JSON lines on standard output. Everything that libraries print goes to standard error, which the
runner keeps as the log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any


class Unusable(Exception):
    """The input or the output cannot be used: the message is for the operator, no traceback is needed."""


class Channel:
    """Writes events to the descriptor that standard output had when the worker began."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        # Libraries print to standard output as they like; that must not mix with the events.
        os.dup2(2, 1)

    def send(self, event: dict[str, Any]) -> None:
        self._out.write(json.dumps(event, allow_nan=False) + "\n")
        self._out.flush()

    def progress(self, stage: str, fraction: float, detail: str = "") -> None:
        """`fraction` of the whole job, 0 to 1."""
        self.send(
            {
                "event": "progress",
                "stage": stage,
                "fraction": fraction,
                "detail": detail,
            }
        )


def _die_with_parent() -> None:
    # Standard input stays open for as long as the runner lives, also if it gets SIGKILL.
    while sys.stdin.buffer.read(4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run(work: Callable[[dict[str, Any], Channel], dict[str, Any]]) -> None:
    """Read the job, do `work`, send its result. Exit status 0 with a result, 1 with an error event."""
    channel = Channel()
    job = json.loads(sys.stdin.buffer.readline())
    if os.getpgrp() == os.getpid():
        threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        result = work(job, channel)
    except Unusable as error:
        channel.send({"event": "error", "kind": "unusable", "message": str(error)})
        status = 1
    except BaseException as error:
        traceback.print_exc()
        channel.send(
            {
                "event": "error",
                "kind": type(error).__name__,
                "message": str(error)[:2000],
            }
        )
        status = 1
    else:
        channel.send({"event": "result", "result": result})
        status = 0
    sys.stderr.flush()
    # Leaves without waiting for library threads, which have been seen to hang at interpreter exit.
    os._exit(status)
