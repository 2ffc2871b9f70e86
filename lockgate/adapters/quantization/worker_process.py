"""Runs one worker script in the quantization environment: one process group, a log, a time limit, nothing left behind."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lockgate.errors import EnvironmentMissing, QuantizationError

Progress = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and what is being done."""

WORKERS = Path(__file__).parent / "workers"
MAX_EVENT_BYTES = 1 << 20

# The worker reads untrusted files: it gets no token, key or proxy of this process, only what Python and CUDA need.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ")
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_")


def _environment(seed: int, threads: int) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    return kept | {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": str(seed),
        "PYTHONNOUSERSITE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
    }


def run_worker(
    python: Path,
    script: str,
    job: dict[str, Any],
    *,
    log: Path,
    progress: Progress | None,
    seed: int,
    threads: int | None,
    timeout: float,
) -> dict[str, Any]:
    """The result that `script` sent. `timeout` in seconds for the whole job.

    Raises `QuantizationError` when the worker says no, breaks off, sends nonsense or takes too long, and
    `EnvironmentMissing` when its Python cannot be started. The whole process group is gone when this returns; it also goes
    when this process is killed, since the worker watches its standard input.
    """
    threads = threads or max(1, len(os.sched_getaffinity(0)))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as log_file:
        try:
            process = subprocess.Popen(
                [str(python), str(WORKERS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=_environment(seed, threads),
                start_new_session=True,
            )
        except OSError as error:
            raise EnvironmentMissing(
                f"the quantization environment's Python {python} cannot be started: {error}",
                hint="run `make setup` to create the environments",
            ) from error
        try:
            assert process.stdin is not None and process.stdout is not None
            line = json.dumps({**job, "seed": seed, "threads": threads}) + "\n"
            # One that died at once has its exit status told below.
            with suppress(BrokenPipeError):
                process.stdin.write(line.encode())
                process.stdin.flush()
            return _follow(process, process.stdout, log, progress, timeout)
        finally:
            _end_group(process)
            for pipe in (process.stdin, process.stdout):
                # Closing flushes, which a process that is gone cannot take.
                with suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    # Before the leader is reaped its group id cannot be taken by another process.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_lines(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    try:
        while line := pipe.readline(MAX_EVENT_BYTES):
            lines.put(line)
    finally:
        lines.put(None)


def _follow(
    process: subprocess.Popen[bytes],
    pipe: IO[bytes],
    log: Path,
    progress: Progress | None,
    timeout: float,
) -> dict[str, Any]:
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(pipe, lines), daemon=True).start()
    end = time.monotonic() + timeout
    stage = "start"
    while True:
        try:
            line = lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise QuantizationError(
                f"the worker was stopped after {timeout:.0f} s in stage {stage!r}",
                log=log,
                hint="raise the time limit, or use a machine with more cores or memory",
            ) from None
        if line is None:
            raise QuantizationError(
                f"the worker ended in stage {stage!r} without a result{_how_it_ended(process)}",
                log=log,
                hint="a kill by signal 9 usually means that memory ran out; the log has the last messages",
            )
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind == "progress":
                stage = str(event["stage"])
                if progress is not None:
                    progress(float(event["fraction"]), f"{stage}: {event['detail']}")
                continue
            if kind == "result":
                result = event["result"]
                if not isinstance(result, dict):
                    raise TypeError("result is not an object")
                return result
            message = str(event["message"])
            cause = str(event["kind"])
        except (ValueError, KeyError, TypeError) as error:
            raise QuantizationError(
                f"the worker sent something that is no event in stage {stage!r}",
                log=log,
            ) from error
        if cause == "unusable":
            raise QuantizationError(f"stage {stage!r}: {message}", log=log)
        raise QuantizationError(
            f"stage {stage!r} failed: {cause}: {message}",
            log=log,
            hint="the log has the traceback; check free disk space and memory first",
        )


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        status = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return ""
    if status < 0:
        return f" (killed by signal {-status})"
    return f" (exit status {status})"
