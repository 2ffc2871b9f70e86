"""The supervisor with real processes, small ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from serving.processes import ProcessId

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def supervise(grace: float, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serving.supervisor", str(grace), sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def family(supervisor: subprocess.Popen[str]) -> list[ProcessId]:
    assert supervisor.stdout is not None
    pids = [int(pid) for pid in supervisor.stdout.readline().split()]
    found = [ProcessId.of(pid) for pid in pids]
    assert None not in found
    return [process for process in found if process is not None]


def all_gone(processes: list[ProcessId], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(process.alive() for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_closed_pipe_ends_a_command_that_ignores_signals_and_what_it_hid_in_another_session() -> (
    None
):
    supervisor = supervise(0.2, STUBBORN)
    processes = family(supervisor)
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    assert all_gone(processes)
    assert supervisor.wait(10) == 128 + 9


def test_the_command_dies_with_a_killed_supervisor() -> None:
    supervisor = supervise(5, STUBBORN)
    server, child = family(supervisor)
    supervisor.kill()
    supervisor.wait()
    assert all_gone([server])
    subprocess.run(["kill", "-9", str(child.pid)], check=False)


def test_the_exit_code_is_the_commands() -> None:
    assert supervise(1, "raise SystemExit(7)").wait(20) == 7
