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
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import httpx

from lockgate.domain.cluster import ClusterStatus
from lockgate.domain.release_state import Slot
from lockgate.errors import ClusterError, LockgateError
from serving.local.api import StatusApi
from serving.local.config import AgentConfig
from serving.local.cpu_pool import CpuPool
from serving.local.desired import DesiredModel, read_model
from serving.local.envoy_config import Address, GatewayModel
from serving.local.fleet import Fleet
from serving.local.follow import Follower, ModelFiles
from serving.local.gateway import Gateway
from serving.local.gpu_pool import GpuPool
from serving.local.images import Admission, StoreAdmission
from serving.local.pods import PodContext
from serving.local.reporting import Applied, cluster_status
from serving.ports import listening
from serving.processes import ProcessId

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 1.0


class Agent:
    """One cluster's control loop. Everything but blocking calls runs in one event loop."""

    def __init__(self, config: AgentConfig, admission: Admission | None = None) -> None:
        self.config = config
        self.started = time.time()
        self.up = False
        self.head: str | None = None
        self.synced: str | None = None
        self.fetched: float | None = None
        self.sync_error: str | None = None
        self.desired: dict[str, DesiredModel] = {}
        self.taken_up: dict[str, Applied] = {}
        self.applied: dict[str, Applied] = {}
        self.errors: dict[str, str] = {}
        self.gateway_errors: dict[str, str] = {}
        self._follower = Follower(config)
        self._last_good = config.directory / "last-good.json"
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self._progress = asyncio.Condition()
        self._told = 0
        self._looks = 0
        self._applies_begun = 0
        self._applies_done = 0
        self._client = httpx.AsyncClient(trust_env=False, timeout=5)
        self.fleet = Fleet(
            config,
            PodContext(
                config=config,
                admission=admission or StoreAdmission(config),
                pool=CpuPool(config.cpu_pool),
                gpus=GpuPool(),
                client=self._client,
                changed=self._wake.set,
                withdrawn=self._withdrawn,
            ),
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
            self.fleet.adopt()
            # What was wanted before comes first: the remote may be away.
            try:
                last = await asyncio.to_thread(self._follower.last)
                if last is not None:
                    await self._take_up(last)
            except LockgateError as error:
                log.error("what was wanted before cannot be read: %s", error.message)
            _write_record(self.config, api.port)
            self.up = True
            loops += [
                asyncio.create_task(self._follow()),
                asyncio.create_task(self._reconcile()),
                asyncio.create_task(stop.wait()),  # type: ignore[arg-type]
            ]
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self.fleet.leave()
            api.close()
            await self._client.aclose()

    def status(self) -> ClusterStatus:
        return cluster_status(self)

    async def sync(self, commit: str | None, model: str | None, timeout_seconds: float) -> bool:
        """Looks at the remote now. With `commit`: whether it (or a later one) is applied in time, for `model` if given."""
        before = self._looks
        self._look.set()

        async def done() -> bool:
            if commit is None:
                return self._looks > before
            applied = self.applied.get(model) if model is not None else None
            now = applied.commit if applied is not None else self.synced if not model else None
            if now is None or now == commit:
                return now is not None
            return await asyncio.to_thread(self._follower.contains, now, commit)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while True:
                    seen = self._told
                    if await done():
                        return True
                    async with self._progress:
                        await self._progress.wait_for(partial(self._told_after, seen))
        return False

    async def _follow(self) -> None:
        while True:
            self._look.clear()
            try:
                head = await asyncio.to_thread(self._follower.fetch)
                self.fetched, self.sync_error = time.time(), None
                if head != self.head:
                    await self._take_up(head)
            except (LockgateError, OSError) as error:
                message = _message(error)
                if self.sync_error != message:
                    log.warning("the remote cannot be followed: %s", message)
                self.sync_error = message
            self._looks += 1
            await self._tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), self.config.poll_seconds)

    async def _take_up(self, commit: str) -> None:
        """Makes the manifests of `commit` what is wanted. A model whose files are bad keeps what it had."""
        files, errors = await asyncio.to_thread(self._follower.read, commit)
        wanted: dict[str, DesiredModel] = {}
        taken_up: dict[str, Applied] = {}
        for item in files:
            try:
                wanted[item.model] = read_model(item.model, item.objects, item.state)
                taken_up[item.model] = Applied(commit, _generation(item))
            except LockgateError as error:
                errors[item.model] = error.message
        for model, message in errors.items():
            log.error("%s at %s: %s", model, commit[:12], message)
            await self._keep(model, wanted, taken_up)
        self.taken_up, self.desired = taken_up, wanted
        self.errors, self.head = errors, commit
        self._last_good.write_text(json.dumps({m: a.commit for m, a in taken_up.items()}))
        log.info("took up %s: %s", commit[:12], ", ".join(sorted(wanted)) or "no model")
        self._wake.set()

    async def _keep(
        self, model: str, wanted: dict[str, DesiredModel], taken_up: dict[str, Applied]
    ) -> None:
        """What was wanted of a model before its files became bad; after a restart, from the last good commit."""
        if model in self.desired:
            wanted[model], taken_up[model] = self.desired[model], self.taken_up[model]
            return
        try:
            commit = json.loads(self._last_good.read_bytes())[model]
            files, _ = await asyncio.to_thread(self._follower.read, commit)
            (item,) = (found for found in files if found.model == model)
            wanted[model] = read_model(model, item.objects, item.state)
            taken_up[model] = Applied(commit, _generation(item))
        except (OSError, ValueError, LookupError, LockgateError) as error:
            log.error("%s: no earlier manifests either: %s", model, error)

    async def _reconcile(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _RECONCILE_SECONDS)
            self._wake.clear()
            if self.head is None:
                continue  # nothing is known, so nothing is to be ended
            self._applies_begun += 1
            begun, head, taken_up = self._applies_begun, self.head, dict(self.taken_up)
            try:
                self.fleet.settle(self.desired, leave=self.errors)
                failed = await self.gateway.apply(self._gateway_models())
            except (ClusterError, OSError) as error:
                message = _message(error)
                if self.gateway.error != message:
                    log.error("%s", message)
                self.gateway.error = message
                self._wake.set()  # and again at once: requests may be waiting for this
                await asyncio.sleep(0.1)
            else:
                self._applies_done = begun
                self._applied(head, taken_up, failed)
                await self.gateway.rotate_logs()
            await self._tell()

    def _applied(
        self, head: str | None, taken_up: Mapping[str, Applied], failed: Mapping[str, str]
    ) -> None:
        """Remembers what is in force now."""
        for model, message in failed.items():
            if self.gateway_errors.get(model) != message:
                log.error("%s", message)
        self.gateway_errors = dict(failed)
        kept = {m: a for m, a in self.applied.items() if m in failed and m in taken_up}
        self.applied = {m: a for m, a in taken_up.items() if m not in failed} | kept
        if not failed and not self.errors:
            self.synced = head

    def _gateway_models(self) -> dict[str, GatewayModel]:
        endpoints: dict[str, dict[Slot, tuple[Address, ...]]] = {m: {} for m in self.desired}
        for model, slot in self.fleet.places(self.desired):
            ready = self.fleet.ready_addresses(model, slot)
            endpoints.setdefault(model, {})[slot] = ready
        return {
            model: GatewayModel(
                model=model,
                port=self.gateway.port(model),
                route=self.desired[model].route if model in self.desired else None,
                endpoints=slots,
            )
            for model, slots in endpoints.items()
        }

    async def _withdrawn(self, name: str) -> None:
        """Returns when the gateway has taken up a configuration that was made after this call."""
        begun = self._applies_begun
        self._wake.set()
        async with self._progress:
            await self._progress.wait_for(lambda: self._applies_done > begun)

    def _told_after(self, seen: int) -> bool:
        return self._told > seen

    async def _tell(self) -> None:
        async with self._progress:
            self._told += 1
            self._progress.notify_all()

    def _api_port(self) -> int:
        """The one asked for, else that of the last agent if it is free, else any."""
        if self.config.api_port:
            return self.config.api_port
        try:
            port = int(json.loads(self.config.record.read_bytes())["api_port"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0
        return 0 if listening(port) else port


def _message(error: LockgateError | OSError) -> str:
    return error.message if isinstance(error, LockgateError) else str(error)


def _generation(files: ModelFiles) -> int | None:
    return files.state.generation if files.state is not None else None


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
    while not stop.is_set():
        agent = Agent(config, admission)
        try:
            await agent.run(stop)
        except Exception:
            if not agent.up:
                raise
            # A fault of this program must not leave the cluster without an agent: the next one takes over what runs.
            log.exception("the agent begins anew")
            await asyncio.sleep(1)


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
