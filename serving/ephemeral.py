"""A candidate's server for evaluation and benchmark as a process on this machine: up, measured, gone.

The server is the real engine with the candidate's own arguments. It runs below `serving.supervisor`, which ends it when
this process leaves the context, crashes or is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import ServingSpec
from lockgate.errors import ServingError
from serving import hardware
from serving.candidate_server import Endpoint
from serving.engines.base import Engine
from serving.engines.registry import engine as engine_named
from serving.local.cpu_pool import Cores, CpuPool
from serving.local.gpu_pool import GpuPool
from serving.ports import LOOPBACK, PortReservation
from serving.smoke import smoke_generation, warm_up

#: What a local server may see of this process's environment, beside what its manifest says.
PASSED_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")  # fmt: skip

STOP_SECONDS = 15.0
_POLL_SECONDS = 0.25
_LOG_TAIL_BYTES = 4000
_SOCKET_NAME_BYTES = 1 + 36
"""A UUID, as vLLM names its sockets."""


class ProcessServer:
    """Serves candidates as processes of the engine in the environment that `python` names when the first one is served.
    `model_directory` gives the files of a model image; `cores` lends the processor cores (default: any that are free)."""

    def __init__(
        self,
        python: Callable[[], Path],
        model_directory: Callable[[ImageRef], Path],
        cores: Cores | None = None,
    ) -> None:
        self._python = python
        self._model_directory = model_directory
        self._cores = cores

    def hardware(self, serving: ServingSpec) -> Digest:
        return hardware.hardware_digest(serving.resources.cpu)

    def serve(
        self, candidate: Candidate, *, log_path: Path
    ) -> contextlib.AbstractContextManager[Endpoint]:
        """See `CandidateServer.serve`."""
        return serve(
            self._model_directory(candidate.model), candidate.serving, python=self._python(),
            log_path=log_path, cpu_pool=self._cores,
        )  # fmt: skip


def base_environment() -> dict[str, str]:
    """The few variables of this process that a model server gets: never its secrets."""
    return {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}


def private_environment(directory: Path) -> dict[str, str]:
    """Home and caches of a server in `directory`, so that servers share and leave behind nothing."""
    return {
        "HOME": str(directory),
        "HF_HOME": str(directory / "huggingface"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "XDG_CONFIG_HOME": str(directory / "config"),
        "VLLM_CACHE_ROOT": str(directory / "vllm-cache"),
        "VLLM_CONFIG_ROOT": str(directory / "vllm-config"),
    }


def temporary_environment(directory: Path) -> dict[str, str]:
    """`directory` for a server's temporary files: an engine that is killed leaves its sockets there. Left to the system's where
    a socket's name would not fit into `directory` (unix(7): 107 bytes)."""
    fits = len(os.fsencode(directory)) + _SOCKET_NAME_BYTES <= 107
    return {"TMPDIR": str(directory)} if fits else {}


def log_tail(path: Path) -> str:
    """The end of a server's log, for an error message."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError as error:
        return f"(the log cannot be read: {error})"


@contextlib.contextmanager
def serve(
    candidate_dir: Path,
    serving: ServingSpec,
    *,
    python: Path,
    log_path: Path,
    cpu_pool: Cores | None = None,
    gpu_pool: GpuPool | None = None,
    ready_seconds: float = 900.0,
    port: int | None = None,
    engine: Engine | None = None,
) -> Iterator[Endpoint]:
    """Serves the model in `candidate_dir` with `python`'s engine until the context ends.

    Yields when the server is healthy, has given a sensible answer and is warm. `ServingError`, with the end of the log, if it
    dies, does not become healthy within `ready_seconds`, answers nonsense, or `port` (default: any free one) is taken.
    """
    engine = engine or engine_named(serving.engine)
    if not candidate_dir.is_dir():
        raise ServingError(f"no model directory {candidate_dir}")
    try:
        reservation = PortReservation.any() if port is None else PortReservation.of(port)
    except OSError as error:
        raise ServingError(f"port {port} is taken: {error}", hint="give another port") from error
    with contextlib.ExitStack() as stack:
        stack.callback(reservation.close)
        lease = stack.enter_context((cpu_pool or CpuPool()).acquire(serving.resources.cpu))
        home = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="lockgate-serve-", ignore_cleanup_errors=True)
        )
        lent = stack.enter_context((gpu_pool or GpuPool()).acquire(serving.resources.gpu))
        cores = () if serving.resources.gpu else lease.cores
        exclusive = lease.exclusive and lent.exclusive
        command = engine.local_command(
            python,
            engine.arguments(
                serving, model_path=str(candidate_dir), host=LOOPBACK, port=reservation.port
            ),
            host=LOOPBACK,
            port=reservation.port,
        )
        environment = {
            **base_environment(),
            **private_environment(Path(home)),
            **temporary_environment(Path(home)),
            **engine.environment(serving),
            **engine.placement(cores, lent.gpus),
        }
        prints = hardware.fingerprint(
            engine, serving, python=python, cores=lease.cores, exclusive=exclusive
        )
        process = stack.enter_context(
            _supervised(
                command, environment, log_path, fds=(*lease.fds, *lent.fds, reservation.fileno())
            )
        )
        base_url = f"http://{LOOPBACK}:{reservation.port}"
        _wait_healthy(base_url + engine.health_path, process, log_path, ready_seconds)
        try:
            smoke_generation(base_url, serving.served_model_name, timeout_seconds=ready_seconds)
            warm_up(base_url, serving.served_model_name)
        except ServingError as error:
            raise ServingError(
                f"{error.message}\n{log_tail(log_path)}", hint=error.hint, log=log_path
            ) from error
        yield Endpoint(
            base_url, serving.served_model_name, prints, log_path, exclusive, process.pid
        )


@contextlib.contextmanager
def _supervised(
    command: list[str], environment: Mapping[str, str], log_path: Path, *, fds: tuple[int, ...]
) -> Iterator[subprocess.Popen[bytes]]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    # The supervisor is this project's code: it needs the path that this process found it on, the engine does not.
    root = str(Path(__file__).resolve().parents[1])
    with log_path.open("ab") as log:
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
                    "from serving.supervisor import main; sys.exit(main(sys.argv[1:]))",
                    root,
                    str(STOP_SECONDS),
                    *command,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "LOCKGATE_INHERITED_FDS": ",".join(map(str, fds))},
                pass_fds=fds,
                start_new_session=True,
            )
        except OSError as error:
            raise ServingError(f"{command[0]} cannot be started: {error}") from error
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS + 10)
        except subprocess.TimeoutExpired:
            # The kernel kills the server with its supervisor (PR_SET_PDEATHSIG).
            process.send_signal(signal.SIGKILL)
            process.wait(10)


def _wait_healthy(
    url: str, process: subprocess.Popen[bytes], log_path: Path, ready_seconds: float
) -> None:
    deadline = time.monotonic() + ready_seconds
    last = "no answer"
    with httpx.Client(timeout=5, trust_env=False) as client:
        while True:
            code = process.poll()
            if code is not None:
                raise ServingError(
                    f"the server ended with exit code {code} before it was healthy:\n"
                    f"{log_tail(log_path)}",
                    hint="the end of the log above says why; the arguments are at its beginning",
                    log=log_path,
                )
            try:
                answer = client.get(url)
                if answer.status_code == 200:
                    return
                last = f"status {answer.status_code}"
            except httpx.HTTPError as error:
                last = repr(error)
            if time.monotonic() >= deadline:
                raise ServingError(
                    f"the server was not healthy after {ready_seconds:.0f} s ({last}):\n"
                    f"{log_tail(log_path)}",
                    hint="raise the time budget, or look in the log for what it waits for",
                    log=log_path,
                )
            time.sleep(_POLL_SECONDS)
