"""Foreign programs: their end, their output, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lockgate.supervision import log_tail, run_program

SPAWNS_A_CHILD = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print(child.pid, flush=True); time.sleep(600)"
)


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process ends (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_status_and_output_of_a_program_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "program.log"
    told: list[str] = []
    program = (
        "import sys; print('kept'); print('told'); print('wrong', file=sys.stderr); sys.exit(7)"
    )
    ended = run_program(
        [sys.executable, "-c", program],
        log=log,
        timeout=60,
        on_line=lambda line: line == "told" and not told.append(line),
    )
    assert (ended.code, ended.timed_out) == (7, False)
    assert told == ["told"]
    assert sorted(log_tail(log).split()) == ["kept", "wrong"]


def test_output_and_errors_do_not_break_each_others_lines(tmp_path: Path) -> None:
    program = (
        "import os, threading\n"
        "def tell(to, word):\n"
        "    for _ in range(300):\n"
        "        for part in (word, word, b'\\n'): os.write(to, part)\n"
        "threads = [threading.Thread(target=tell, args=a) for a in ((1, b'out'), (2, b'err'))]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "os.write(2, b'last words')\n"
    )
    log = tmp_path / "log"
    assert run_program([sys.executable, "-c", program], log=log, timeout=60).code == 0
    lines = log.read_text().splitlines()
    assert sorted(lines) == ["errerr"] * 300 + ["last words"] + ["outout"] * 300


def test_a_program_killed_by_a_signal_is_not_mistaken_for_one_that_ended_well(
    tmp_path: Path,
) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    ended = run_program([sys.executable, "-c", program], log=tmp_path / "log", timeout=60)
    assert ended.code == -signal.SIGSEGV


def test_a_program_that_does_not_exist_ends_with_127(tmp_path: Path) -> None:
    ended = run_program([str(tmp_path / "nothing")], log=tmp_path / "log", timeout=60)
    assert ended.code == 127
    assert "cannot start" in log_tail(tmp_path / "log")


@pytest.mark.slow
def test_a_program_that_hangs_is_ended_with_all_its_children(tmp_path: Path) -> None:
    pids: list[int] = []
    ended = run_program(
        [sys.executable, "-c", SPAWNS_A_CHILD],
        log=tmp_path / "log",
        timeout=3,
        on_line=lambda line: pids.append(int(line)) or True,
    )
    assert ended.timed_out
    assert len(pids) == 1
    assert gone(pids[0])


def test_nothing_survives_a_caller_that_was_killed(tmp_path: Path) -> None:
    caller = (
        "import sys; from pathlib import Path; from lockgate.supervision import run_program; "
        f"run_program([sys.executable, '-c', {SPAWNS_A_CHILD!r}], log=Path({str(tmp_path / 'log')!r}), timeout=600)"
    )
    process = subprocess.Popen([sys.executable, "-c", caller])
    try:
        log = tmp_path / "log"
        deadline = time.monotonic() + 30
        while not log_tail(log).strip().isdigit() and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = int(log_tail(log))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert gone(pid)
