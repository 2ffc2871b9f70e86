"""Foreign programs run to their end: time limit, output kept, and nothing left behind, not even after SIGKILL of the caller.

Between the caller and the program stands a small guard process (this module, run with `-m`). It holds the reading end of a
pipe; the kernel closes the writing end when the caller dies in whatever way, and the guard then ends the program with its
whole process group. Used by the adapters whose foreign system is a program (evaluation harness, load generator).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import IO

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    """Exit status; negative is the number of the signal that ended it."""
    timed_out: bool
    log: Path


def run_program(
    command: Sequence[str],
    *,
    log: Path,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    on_line: Callable[[str], bool] | None = None,
) -> Ended:
    """Run `command` until it ends or `timeout` seconds are over; standard output and error are appended to `log`.

    Both by whole lines, so that neither breaks a line of the other. `on_line` sees every line of standard output first; a
    line for which it returns True is not logged. It runs in a thread of its own. Raises OSError if the guard cannot be
    started; a program that does not exist ends with code 127.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a line is one write, and with O_APPEND one write is not broken up by another.
    with log.open("ab", buffering=0) as sink:
        guard = subprocess.Popen(
            [sys.executable, "-m", "lockgate.supervision", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            cwd=directory,
            start_new_session=True,
        )
        readers = [
            threading.Thread(target=_copy, args=(guard.stdout, sink, on_line), daemon=True),
            threading.Thread(target=_copy, args=(guard.stderr, sink, None), daemon=True),
        ]
        for reader in readers:
            reader.start()
        timed_out = False
        try:
            code = guard.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            code = _end_guard(guard)
        except BaseException:
            _end_guard(guard)
            raise
        finally:
            if guard.stdin is not None:
                guard.stdin.close()
            for reader in readers:
                reader.join(GRACE_SECONDS)
    return Ended(code=code - 256 if code > 192 else code, timed_out=timed_out, log=log)


def log_tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _copy(source: IO[bytes] | None, sink: FileIO, on_line: Callable[[str], bool] | None) -> None:
    assert source is not None
    with source:
        for raw in source:
            if on_line is None or not on_line(raw.decode(errors="replace").rstrip("\n")):
                sink.write(raw if raw.endswith(b"\n") else raw + b"\n")


def _end_guard(guard: subprocess.Popen[bytes]) -> int:
    if guard.stdin is not None:
        guard.stdin.close()
    try:
        return guard.wait(GRACE_SECONDS * 2)
    except subprocess.TimeoutExpired:
        guard.kill()
        return guard.wait()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


def _guard(command: Sequence[str]) -> int:
    """Run `command` in a process group of its own until it ends or standard input does."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127

    def end() -> None:
        _signal_group(child, signal.SIGTERM)
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(child, signal.SIGKILL)

    def end_with_caller() -> None:
        sys.stdin.buffer.read()
        end()

    def end_on_signal(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=end).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end_on_signal)
    threading.Thread(target=end_with_caller, daemon=True).start()
    code = child.wait()
    _signal_group(child, signal.SIGKILL)
    return code if code >= 0 else 256 + code


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(_guard(sys.argv[1:]))
