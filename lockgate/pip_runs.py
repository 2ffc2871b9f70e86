"""pip, and the other programs that make an environment, run to their end: output kept, time limited, failures explained.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

from lockgate.errors import EnvironmentMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PIP_SECONDS = 3600
"""Time limit of one pip run: a slow line needs minutes for a gigabyte, a hung one must end."""

_PR_SET_PDEATHSIG = 1

# Settings that would send packages elsewhere than into the environment, or change what is installed.
_FOREIGN_VARIABLES = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PIP_CONSTRAINT",
    "PIP_PREFIX",
    "PIP_REQUIRE_HASHES",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
)

_NO_DISTRIBUTION = "No matching distribution found"
_CONSTRAINED = "ResolutionImpossible"
_PIP_FAILURES = (
    (
        r"No space left on device",
        "the disk is full",
        "free space there, then run the command again",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "a downloaded file is not the one that was locked",
        "a proxy or mirror may have altered it: try another index, or `pip cache purge`",
    ),
    (
        r"Temporary failure in name resolution|Connection refused|Network is unreachable|ConnectTimeout"
        r"|Max retries exceeded|ProxyError|SSLError",
        "the package index cannot be reached",
        "check the network, the proxy, and pip's configuration (`pip config list`), then run the command again",
    ),
    (
        _NO_DISTRIBUTION,
        "the package index has no fitting file",
        "check that pip's index carries what the log names for this Python and platform",
    ),
    (
        _CONSTRAINED,
        "a constraint leaves no file of what was asked for",
        "the log names it; see `pip config list` for a constraints file of this machine's",
    ),
)


class NoSuchDistribution(EnvironmentMissing):
    """The package sources answered, and have no fitting file."""


def run_pip(
    python: Path, arguments: Sequence[str], log: Path, on_line: Callable[[str], None] | None = None
) -> None:
    """Run one pip command in the given environment. Raises EnvironmentMissing, or NoSuchDistribution."""
    options = ["--no-input", "--disable-pip-version-check"]
    if arguments[0] in ("install", "download"):
        options += ["--progress-bar", "off"]
    command = [str(python), "-m", "pip", arguments[0], *options, *arguments[1:]]
    run_logged(command, log, PIP_SECONDS, f"pip {arguments[0]} failed", on_line)


def run_logged(
    command: Sequence[str],
    log: Path,
    seconds: float,
    failure: str,
    on_line: Callable[[str], None] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a command to its end in a process group of its own, its output in the log; EnvironmentMissing on failure."""
    environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN_VARIABLES}
    environment["PYTHONUNBUFFERED"] = "1"
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        # After a SIGKILL the file lock of the environment is free: no orphan may go on writing into it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    lines: list[str] = []
    timed_out = threading.Event()
    with log.open("a") as record:
        record.write(f"$ {' '.join(command)}\n")
        record.flush()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=directory,
            start_new_session=True,
            preexec_fn=die_with_parent,
        ) as process:

            def kill() -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

            def give_up() -> None:
                timed_out.set()
                kill()

            timer = threading.Timer(seconds, give_up)
            timer.daemon = True
            timer.start()
            try:
                for raw in process.stdout or ():
                    line = re.sub(r"(https?://)[^/@\s]+@", r"\1***@", raw)
                    record.write(line)
                    lines.append(line.rstrip())
                    if on_line is not None:
                        on_line(line.strip())
                process.wait()
            finally:
                timer.cancel()
                if process.poll() is None:
                    kill()
    if timed_out.is_set():
        raise EnvironmentMissing(f"{failure}: no end within {seconds:.0f} s", log=log)
    if process.returncode != 0:
        output = "\n".join(lines)
        for pattern, meaning, hint in _PIP_FAILURES:
            if re.search(pattern, output):
                nothing = pattern in (_NO_DISTRIBUTION, _CONSTRAINED)
                kind = NoSuchDistribution if nothing else EnvironmentMissing
                raise kind(f"{failure}: {meaning}", log=log, hint=hint)
        last = "; ".join(line for line in lines[-3:] if line) or "no output"
        raise EnvironmentMissing(f"{failure} (exit {process.returncode}): {last}", log=log)
