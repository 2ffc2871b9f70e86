"""The agent of the embedded cluster: what Argo CD or Flux, the kubelet and a gateway controller are elsewhere.

    python -m serving.local.agent CONFIG.json

It can be killed at any moment: servers and gateway run on, and the next agent adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from lockgate.domain.release_state import Slot
from lockgate.errors import ClusterError, LockgateError
from serving.local.api import StatusApi
from serving.local.config import AgentConfig
from serving.local.cpu_pool import CpuPool
from serving.local.desired import DesiredModel, DesiredSlot, PodTemplate, read_model
from serving.local.envoy_config import GatewayModel
from serving.local.follow import Follower, ModelFiles
from serving.local.gateway import Gateway
from serving.local.images import Admission, StoreAdmission
from serving.local.pods import Pod, PodContext
from serving.local.records import PodRecord, read_records, write_record
from serving.local.reporting import Applied, cluster_status
from serving.local.slots import PodView, plan_pods
from serving.local.status import ClusterStatus
from serving.processes import ProcessId

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 1.0
_LOGS_KEPT = 60


class Agent:
    """One cluster's control loop. Everything but blocking calls runs in one event loop."""

    def __init__(self, config: AgentConfig, admission: Admission | None = None) -> None:
        self.config = config
        self.started = time.time()
        self.head: str | None = None
        self.synced: str | None = None
        self.fetched: float | None = None
        self.sync_error: str | None = None
        self.desired: dict[str, DesiredModel] = {}
        self.taken_up: dict[str, Applied] = {}
        self.applied: dict[str, Applied] = {}
        self.errors: dict[str, str] = {}
        self.pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._follower = Follower(config)
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self._progress = asyncio.Condition()
        self._looks = 0
        self._applies_begun = 0
        self._applies_done = 0
        self._client = httpx.AsyncClient(trust_env=False, timeout=5)
        self._pod_context = PodContext(
            config=config,
            admission=admission or StoreAdmission(config),
            pool=CpuPool(config.cpu_pool),
            client=self._client,
            changed=self._wake.set,
            withdrawn=self._withdrawn,
        )
        self.gateway = Gateway(
            config.gateway,
            cluster=config.cluster,
            client=self._client,
            wanted_ports=config.gateway_ports,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Processes are left running. Raises what is a fault of the agent itself."""
        api = StatusApi(
            self._api_port(), asyncio.get_running_loop(), status=self.status, sync=self.sync
        )
        loops = [asyncio.create_task(self.gateway.process.run())]
        try:
            self._adopt()
            # What was wanted before comes first: the remote may be away.
            last = await asyncio.to_thread(self._follower.last)
            if last is not None:
                await self._take_up(last)
            _write_record(self.config, api.port)
            loops += [
                asyncio.create_task(self._follow()),
                asyncio.create_task(self._reconcile()),
                asyncio.create_task(stop.wait()),  # type: ignore[arg-type]
            ]
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*loops, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(*loops, *self._tasks.values(), return_exceptions=True)
            api.close()
            await self._client.aclose()

    def status(self) -> ClusterStatus:
        return cluster_status(self)

    async def sync(self, commit: str | None, timeout_seconds: float) -> bool:
        """Looks at the remote now. With `commit`: whether it (or a later one) is applied in time."""
        before = self._looks
        self._look.set()

        async def done() -> bool:
            if commit is None:
                return self._looks > before
            if self.synced is None:
                return False
            return await asyncio.to_thread(self._follower.contains, self.synced, commit)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while not await done():
                    async with self._progress:
                        await self._progress.wait()
                return True
        return False

    async def _follow(self) -> None:
        while True:
            self._look.clear()
            try:
                head = await asyncio.to_thread(self._follower.fetch)
                self.fetched, self.sync_error = time.time(), None
                if head != self.head:
                    await self._take_up(head)
            except LockgateError as error:
                if self.sync_error != error.message:
                    log.warning("the remote cannot be read: %s", error.message)
                self.sync_error = error.message
            self._looks += 1
            await self._tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), self.config.poll_seconds)

    async def _take_up(self, commit: str) -> None:
        """Makes the manifests of `commit` what is wanted. A model whose files are bad keeps what it had."""
        files, errors = await asyncio.to_thread(self._follower.read, commit)
        wanted: dict[str, DesiredModel] = {}
        for item in files:
            try:
                wanted[item.model] = read_model(item.model, item.objects, item.state)
            except LockgateError as error:
                errors[item.model] = error.message
        for model, message in errors.items():
            log.error("%s at %s: %s", model, commit[:12], message)
            if model in self.desired:
                wanted[model] = self.desired[model]
        self.taken_up = {
            item.model: Applied(commit, _generation(item))
            for item in files
            if item.model in wanted and item.model not in errors
        } | {m: a for m, a in self.taken_up.items() if m in errors}
        self.desired, self.errors, self.head = wanted, errors, commit
        log.info("took up %s: %s", commit[:12], ", ".join(sorted(wanted)) or "no model")
        self._wake.set()

    async def _reconcile(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _RECONCILE_SECONDS)
            self._wake.clear()
            self._reap()
            for model, slot in self._places():
                self._settle(model, slot)
            self._applies_begun += 1
            begun, head, taken_up = self._applies_begun, self.head, dict(self.taken_up)
            try:
                await self.gateway.apply(self._gateway_models())
            except ClusterError as error:
                if self.gateway.error != error.message:
                    log.error("%s", error.message)
                self.gateway.error = error.message
                self._wake.set()
                await asyncio.sleep(0.1)
            else:
                self._applies_done = begun
                self.applied = taken_up
                if not self.errors and head is not None:
                    self.synced = head
            await self._tell()

    def _adopt(self) -> None:
        for record in read_records(self.config):
            try:
                template = PodTemplate.parse(record.template)
            except LockgateError as error:
                log.error("%s: its record cannot be used: %s", record.name, error.message)
                continue
            self._run(Pod(record, template, self._pod_context))

    def _places(self) -> Iterator[tuple[str, Slot]]:
        """Model and slot of everything wanted or still there."""
        places = {(m.model, s.slot) for m in self.desired.values() for s in m.slots}
        places |= {(p.record.model, Slot(p.record.slot)) for p in self.pods.values()}
        return iter(sorted(places))

    def wanted_slot(self, model: str, slot: Slot) -> DesiredSlot | None:
        slots = self.desired[model].slots if model in self.desired else ()
        return next((s for s in slots if s.slot is slot), None)

    def pods_of(self, model: str, slot: Slot) -> list[Pod]:
        pods = self.pods.values()
        return [p for p in pods if p.record.model == model and p.record.slot == slot.value]

    def _settle(self, model: str, slot: Slot) -> None:
        """One step of this slot towards what is wanted."""
        wanted = self.wanted_slot(model, slot)
        if wanted is not None and wanted.template is None:
            return
        pods = self.pods_of(model, slot)
        plan = plan_pods(
            wanted.template.digest if wanted is not None and wanted.template else None,
            wanted.replicas if wanted is not None else 0,
            [
                PodView(p.name, p.template.digest, p.ready, p.terminating, p.record.created)
                for p in pods
            ],
            max_surge=wanted.max_surge if wanted is not None else 0,
            max_unavailable=wanted.max_unavailable if wanted is not None else 0,
        )
        for name in plan.terminate:
            log.info("%s: to be ended", name)
            self.pods[name].terminate()
        for _ in range(plan.create):
            assert wanted is not None and wanted.template is not None
            self._create(model, wanted, wanted.template)

    def _create(self, model: str, wanted: DesiredSlot, template: PodTemplate) -> None:
        record = PodRecord(
            name=f"{wanted.name}-{template.digest.hex[:8]}-{secrets.token_hex(3)}",
            model=model,
            slot=wanted.slot.value,
            deployment=wanted.name,
            template=dict(wanted.raw_template),
            created=time.time(),
        )
        write_record(self.config.pods / record.name, record)
        log.info("%s: created for %s", record.name, template.candidate)
        self._run(Pod(record, template, self._pod_context))

    def _run(self, pod: Pod) -> None:
        self.pods[pod.name] = pod
        self._tasks[pod.name] = asyncio.create_task(pod.run(), name=pod.name)
        self._tasks[pod.name].add_done_callback(lambda _: self._wake.set())

    def _reap(self) -> None:
        for name, task in list(self._tasks.items()):
            if not task.done():
                continue
            error = task.exception()
            if error is not None:
                # A fault of this program: the pod is taken up again as a new agent would take it up.
                log.error("%s: %r", name, error, exc_info=error)
                pod = self.pods[name]
                self._run(Pod(pod.record, pod.template, self._pod_context))
            elif self.pods[name].gone:
                del self.pods[name], self._tasks[name]
        for old in sorted(self.config.logs.glob("*.log"), key=_modified)[:-_LOGS_KEPT]:
            if old.stem not in self.pods:
                old.unlink(missing_ok=True)

    def _gateway_models(self) -> dict[str, GatewayModel]:
        endpoints: dict[str, dict[Slot, list[tuple[str, int]]]] = {}
        for model, slot in self._places():
            ready = [p.address for p in self.pods_of(model, slot) if p.address is not None]
            endpoints.setdefault(model, {})[slot] = sorted(ready)
        return {
            model: GatewayModel(
                model=model,
                port=self.gateway.port(model),
                route=self.desired[model].route if model in self.desired else None,
                endpoints={s: tuple(a) for s, a in slots.items()},
            )
            for model, slots in endpoints.items()
        }

    async def _withdrawn(self, name: str) -> None:
        """Returns when the gateway has taken up a configuration that was made after this call."""
        begun = self._applies_begun
        self._wake.set()
        async with self._progress:
            await self._progress.wait_for(lambda: self._applies_done > begun)

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    def _api_port(self) -> int:
        """The one asked for, else that of the last agent if it is free, else any."""
        if self.config.api_port:
            return self.config.api_port
        try:
            port = int(json.loads(self.config.record.read_bytes())["api_port"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0
        from serving.ports import listening

        return 0 if listening(port) else port


def _generation(files: ModelFiles) -> int | None:
    return files.state.generation if files.state is not None else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _write_record(config: AgentConfig, api_port: int) -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    data = {
        "pid": own.pid,
        "start": own.start,
        "api_port": api_port,
        "config": config.content_digest(),
    }
    temporary = config.record.with_suffix(".tmp")
    temporary.write_text(json.dumps(data))
    temporary.rename(config.record)


async def _serve(config: AgentConfig, admission: Admission | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    await Agent(config, admission).run(stop)


def main(argv: list[str], admission: Admission | None = None) -> int:
    """Runs the agent of the configuration file `argv[0]`; 1 if another one runs already, or its port is taken."""
    config = AgentConfig.model_validate_json(Path(argv[0]).read_bytes())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config.directory.mkdir(parents=True, exist_ok=True)
    with config.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another agent runs in %s", config.directory)
            return 1
        try:
            asyncio.run(_serve(config, admission))
        except OSError as error:
            log.error("the agent cannot run: %s", error)
            return 1
        except LockgateError as error:
            log.error("the agent cannot run: %s", error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
