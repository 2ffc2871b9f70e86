"""One pod: a server process, kept as its manifest says, through restarts of this agent as well.

What has to survive the agent is in the pod's record, written before and after each step that counts. The process itself
does not depend on the agent in any way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import httpx

from lockgate.domain.cluster import PodStatus
from lockgate.errors import LockgateError, Refused
from serving.local.config import AgentConfig
from serving.local.cpu_pool import CpuPool
from serving.local.desired import PodTemplate
from serving.local.gpu_pool import GpuPool
from serving.local.images import Admission
from serving.local.launch import launch, scratch_directory
from serving.local.probing import ProbeFailed, check, until_started
from serving.local.records import PodRecord, write_record
from serving.ports import LOOPBACK
from serving.processes import (
    ProcessId,
    reap,
    signal_group,
    signal_leader,
    wait_exit,
)

log = logging.getLogger(__name__)

_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 60.0
_STEADY_SECONDS = 60.0
"""A server that was ready for so long has its crashes forgiven."""
_CRASH_LOOP = 3
"""Starts in a row that never became ready: worth telling, no accident."""
_REFUSED_SECONDS = 30.0
_WITHDRAW_SECONDS = 5.0


@dataclass(frozen=True)
class PodContext:
    """What every pod of a cluster shares."""

    config: AgentConfig
    admission: Admission
    pool: CpuPool
    gpus: GpuPool
    client: httpx.AsyncClient
    changed: Callable[[], None]
    """Called when readiness or existence changed."""
    withdrawn: Callable[[str], Awaitable[None]]
    """Returns when the gateway sends nothing more to this pod."""


class Pod:
    """Runs until it is told to terminate. All methods belong to the agent's event loop."""

    def __init__(self, record: PodRecord, template: PodTemplate, context: PodContext) -> None:
        self.record = record
        self.template = template
        self.refusal: str | None = None
        self.waiting: str | None = None
        self._context = context
        self._handle: subprocess.Popen[bytes] | None = None
        self._killed: str | None = None
        self._stop = asyncio.Event()
        self._state = "pending"
        self._since = time.time()
        if record.terminating is not None:
            self._stop.set()

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def directory(self) -> Path:
        return self._context.config.pods / self.name

    @property
    def log(self) -> Path:
        return self._context.config.logs / f"{self.name}.log"

    @property
    def ready(self) -> bool:
        return self.record.ready and self.record.terminating is None

    @property
    def terminating(self) -> bool:
        return self.record.terminating is not None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it serves; only while it is ready."""
        return (LOOPBACK, self.record.port) if self.ready and self.record.port else None

    def terminate(self) -> None:
        """Asks for the end: out of the gateway, preStop, SIGTERM, drain, and at last SIGKILL."""
        if self.record.terminating is None:
            self._update(terminating=time.time(), ready=False)
            self._state_is("terminating")
            self._stop.set()
            self._context.changed()

    def status(self) -> PodStatus:
        record = self.record
        return PodStatus(
            name=self.name,
            pid=record.pid,
            url=f"http://{LOOPBACK}:{record.port}" if record.port else None,
            ready=self.ready,
            since=self._since,
            state="terminating" if self.terminating else self._state,
            candidate=self.template.candidate,
            template=self.template.digest,
            restarts=record.restarts,
            cores=record.cores,
            exclusive_cores=record.exclusive,
            last_exit=record.last_exit,
            log=str(self.log),
        )

    async def run(self) -> None:
        """The pod's whole life. Cancelled, it leaves the server running and its record in place."""
        process = self.record.process
        if process is not None and process.alive():
            log.info("%s: adopted process %d", self.name, process.pid)
            self._state_is("running" if self.record.started else "starting")
        elif process is not None:
            self._ended("ended while nobody looked")
        while not self._stop.is_set():
            if self.record.process is not None or await self._start():
                await self._attend()
        await self._end()
        scratch = scratch_directory(self._context.config.cluster, self.name)
        for directory in (self.directory, scratch):
            shutil.rmtree(directory, ignore_errors=True)
        self._context.changed()

    async def _start(self) -> bool:
        """Brings the process up, or says why not and waits for the next try."""
        context = self._context
        try:
            model = await self._model()
            if self._stop.is_set():
                return False
            lease = context.pool.acquire(self.template.cpu)
            with lease, context.gpus.acquire(self.template.gpu) as lent:
                launched = launch(
                    self.template,
                    name=self.name,
                    cluster=context.config.cluster,
                    python=context.config.serving_python,
                    model=model,
                    volumes=self.directory / "volumes",
                    log=self.log,
                    lease=lease,
                    lent=lent,
                )
        except LockgateError as error:
            final = isinstance(error, Refused)
            self.refusal = error.message if final else None
            self.waiting = None if final else error.message
            log.warning("%s: not started: %s", self.name, error.message)
            self._state_is("pending")
            await self._pause(_REFUSED_SECONDS if final else _FIRST_BACKOFF_SECONDS * 4)
            return False
        self.refusal = self.waiting = None
        self._handle, self._killed = launched.handle, None
        self._update(
            pid=launched.process.pid,
            start=launched.process.start,
            port=launched.port,
            cores=lease.cores,
            exclusive=lease.exclusive and lent.exclusive,
            started=False,
            ready=False,
        )
        log.info("%s: started process %d on cores %s", self.name, launched.process.pid, lease.cores)
        self._state_is("starting")
        return True

    async def _model(self) -> Path:
        """The verified model's directory; verified anew for every new pod, not for every restart of one."""
        if self.record.admitted is not None and Path(self.record.admitted).is_dir():
            return Path(self.record.admitted)
        model = await asyncio.to_thread(self._context.admission.admit, self.template)
        self._update(admitted=str(model))
        return model

    async def _attend(self) -> None:
        """Looks after a running process until it ends or the pod is to stop."""
        process = self.record.process
        assert process is not None
        exited = asyncio.create_task(wait_exit(process))
        stop = asyncio.create_task(self._stop.wait())
        probes = asyncio.create_task(self._probe(process))
        tasks: tuple[asyncio.Task[Any], ...] = (exited, stop, probes)
        try:
            pending: set[asyncio.Task[Any]] = set(tasks)
            while not exited.done() and not stop.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not self._stop.is_set():
            self._ended(self._exit_reason())
            await self._pause(self._backoff())

    async def _probe(self, process: ProcessId) -> None:
        base = f"http://{LOOPBACK}:{self.record.port}"
        template, client = self.template, self._context.client
        try:
            if not self.record.started:
                await until_started(client, base, template.startup)
                self._update(started=True)
                self._state_is("running")
            async with asyncio.TaskGroup() as group:
                group.create_task(check(client, base, template.readiness, self._readiness))
                group.create_task(check(client, base, template.liveness, self._liveness))
        except* ProbeFailed as failures:
            log.warning("%s: %s: killed", self.name, failures.exceptions[0])
            self._killed = f"killed: {failures.exceptions[0]}"
            self._update(ready=False)
            self._context.changed()
            signal_group(process, SIGTERM)
            await asyncio.sleep(min(self.template.grace_seconds, 30))
            signal_group(process, SIGKILL)

    def _readiness(self, healthy: bool) -> None:
        if healthy != self.record.ready:
            log.info("%s: %s", self.name, "ready" if healthy else "not ready")
            self._since = time.time()
            self._update(ready=healthy)
            self._context.changed()
        if healthy and self.record.failed_starts and time.time() - self._since > _STEADY_SECONDS:
            self._update(failed_starts=0)
        if healthy:
            self.refusal = self.waiting = None

    @staticmethod
    def _liveness(healthy: bool) -> None:
        if not healthy:
            raise ProbeFailed("the liveness probe failed")

    def _exit_reason(self) -> str:
        code = self._bury()
        if self._killed is not None:
            return self._killed
        if code is None:
            return "ended, exit code unknown"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _ended(self, reason: str) -> None:
        """The process is dead, and it was not told to end."""
        process = self.record.process
        if process is not None:
            signal_group(process, SIGKILL)
        failed = self.record.failed_starts + 1
        self._update(
            pid=None,
            start=None,
            port=None,
            started=False,
            ready=False,
            restarts=self.record.restarts + 1,
            failed_starts=failed,
            last_exit=reason,
        )
        self._handle = None
        log.warning("%s: server ended (%s), restart %d", self.name, reason, self.record.restarts)
        text = f"{self.name} ended {failed} times in a row, last by {reason}; log: {self.log}"
        if failed >= _CRASH_LOOP:
            self.refusal = f"crash loop: {text}"
        else:
            self.waiting = text
        self._state_is("backoff")
        self._context.changed()

    def _backoff(self) -> float:
        steps = min(self.record.failed_starts - 1, 10)
        return float(min(_FIRST_BACKOFF_SECONDS * 2**steps, _LAST_BACKOFF_SECONDS))

    async def _end(self) -> None:
        """Ends the process as a kubelet would; returns when nothing of it is left."""
        process = self.record.process
        if process is None:
            return
        terminating = self.record.terminating or time.time()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._context.withdrawn(self.name), _WITHDRAW_SECONDS)
        exited = asyncio.create_task(wait_exit(process))
        try:
            for wait_until, signum in (
                (terminating + self.template.pre_stop_seconds, SIGTERM),
                (terminating + self.template.grace_seconds, SIGKILL),
            ):
                await asyncio.wait((exited,), timeout=max(0.0, wait_until - time.time()))
                if exited.done():
                    break
                log.info("%s: %s", self.name, signum.name)
                if signum is SIGTERM:
                    signal_leader(process, SIGTERM)
                else:
                    log.warning("%s: not drained within the grace period", self.name)
                    signal_group(process, SIGKILL)
            await asyncio.wait((exited,), timeout=10)
        finally:
            exited.cancel()
        signal_group(process, SIGKILL)
        self._bury()
        log.info("%s: gone", self.name)

    def _bury(self) -> int | None:
        """Leaves no zombie; the exit code, if the dead process was this agent's child."""
        if self._handle is not None:
            return self._handle.poll()
        return reap(self.record.pid) if self.record.pid is not None else None

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not through a request to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _state_is(self, state: str) -> None:
        if state != self._state:
            self._state, self._since = state, time.time()
            self._context.changed()

    def _update(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
        write_record(self.directory, self.record)
