"""Keeps the agent running: one that was killed by a signal is started again at once, one that ended by itself is not.

    python -m serving.local.supervise COMMAND...

What kubelets and systemd do elsewhere. Servers and gateway do not depend on it, and neither does the agent: a supervisor that
dies leaves the agent alone, and `up` starts another one with the next agent.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from serving.local.records import SUPERVISOR_VARIABLE

_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 5.0
_SHORT_LIFE_SECONDS = 10.0


def main(command: list[str]) -> int:
    """Runs `command` until it ends by itself; its exit code."""
    environment = {k: v for k, v in os.environ.items() if k != SUPERVISOR_VARIABLE}
    backoff = _FIRST_BACKOFF_SECONDS
    while True:
        began = time.monotonic()
        # A session of its own: the end of the supervisor is not the end of the agent.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        code = child.wait()
        if code >= 0:
            return code
        if time.monotonic() - began > _SHORT_LIFE_SECONDS:
            backoff = _FIRST_BACKOFF_SECONDS
        print(f"the agent was ended by signal {-code}: started again in {backoff:g} s", flush=True)
        time.sleep(backoff)
        backoff = min(backoff * 2, _LAST_BACKOFF_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
