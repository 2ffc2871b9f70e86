"""All pods of a cluster: taken over from an earlier agent, created, ended and buried."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Container, Mapping
from pathlib import Path

from lockgate.domain.release_state import Slot
from lockgate.errors import LockgateError
from serving.local.config import AgentConfig
from serving.local.desired import DesiredModel, DesiredSlot, PodTemplate
from serving.local.envoy_config import Address
from serving.local.pods import Pod, PodContext
from serving.local.records import PodRecord, read_records, write_record
from serving.local.slots import PodView, plan_pods

log = logging.getLogger(__name__)

_LOGS_KEPT = 60
_AGAIN_SECONDS = 2.0


class Fleet:
    """Pods by name, each with a task of its own. Belongs to the agent's event loop."""

    def __init__(self, config: AgentConfig, context: PodContext) -> None:
        self._config = config
        self._context = context
        self.pods: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def adopt(self) -> None:
        """Goes on with the pods that are on record."""
        for record in read_records(self._config):
            try:
                template = PodTemplate.parse(record.template)
            except LockgateError as error:
                log.error("%s: its record cannot be used: %s", record.name, error.message)
                continue
            self._run(Pod(record, template, self._context))

    def settle(self, desired: Mapping[str, DesiredModel], *, leave: Container[str] = ()) -> None:
        """One step of every slot towards what is wanted.

        A refused slot is left as it is, and so are the pods of the models in `leave` of which nothing is known. A slot grows
        only into room that another one has left: what drains still has its memory.
        """
        self._reap()
        for model, slot in self.places(desired):
            wanted = desired_slot(desired, model, slot)
            if (wanted is not None and wanted.template is None) or (
                model not in desired and model in leave
            ):
                continue
            room = self._room(desired[model]) if model in desired else 0
            self._settle(model, slot, wanted, room)

    def of(self, model: str, slot: Slot) -> list[Pod]:
        """The slot's pods, oldest first."""
        found = [
            pod
            for pod in self.pods.values()
            if pod.record.model == model and pod.record.slot == slot.value
        ]
        return sorted(found, key=lambda pod: pod.record.created)

    def places(self, desired: Mapping[str, DesiredModel]) -> list[tuple[str, Slot]]:
        """Model and slot of everything that is wanted or still there."""
        places = {(m.model, s.slot) for m in desired.values() for s in m.slots}
        places |= {(p.record.model, Slot(p.record.slot)) for p in self.pods.values()}
        return sorted(places)

    def ready_addresses(self, model: str, slot: Slot) -> tuple[Address, ...]:
        return tuple(sorted(pod.address for pod in self.of(model, slot) if pod.address is not None))

    async def leave(self) -> None:
        """Stops looking after the pods; their servers run on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _room(self, wanted: DesiredModel) -> int:
        """How many pods more than there are all slots of a model want together."""
        there = sum(pod.record.model == wanted.model for pod in self.pods.values())
        return max(0, sum(s.replicas + s.max_surge for s in wanted.slots) - there)

    def _settle(self, model: str, slot: Slot, wanted: DesiredSlot | None, room: int) -> None:
        template = wanted.template if wanted is not None else None
        plan = plan_pods(
            template.digest if template is not None else None,
            wanted.replicas if wanted is not None else 0,
            [
                PodView(p.name, p.template.digest, p.ready, p.terminating, p.record.created)
                for p in self.of(model, slot)
            ],
            max_surge=wanted.max_surge if wanted is not None else 0,
            max_unavailable=wanted.max_unavailable if wanted is not None else 0,
        )
        for name in plan.terminate:
            log.info("%s: to be ended", name)
            self.pods[name].terminate()
        for _ in range(min(plan.create, room)):
            assert wanted is not None and template is not None
            self._create(model, wanted, template)

    def _create(self, model: str, wanted: DesiredSlot, template: PodTemplate) -> None:
        record = PodRecord(
            name=f"{wanted.name}-{template.digest.hex[:8]}-{secrets.token_hex(3)}",
            model=model,
            slot=wanted.slot.value,
            deployment=wanted.name,
            template=dict(wanted.raw_template),
            created=time.time(),
        )
        write_record(self._config.pods / record.name, record)
        log.info("%s: created for %s", record.name, template.candidate)
        self._run(Pod(record, template, self._context))

    def _run(self, pod: Pod) -> None:
        self.pods[pod.name] = pod
        self._tasks[pod.name] = asyncio.create_task(self._live(pod), name=pod.name)

    async def _live(self, pod: Pod) -> None:
        """The pod's life. Where this program fails (a full disk, a fault), it goes on as the next agent would."""
        while True:
            try:
                await pod.run()
                break
            except Exception:
                log.exception("%s: taken up again in %.0f s", pod.name, _AGAIN_SECONDS)
                await asyncio.sleep(_AGAIN_SECONDS)
                pod = Pod(pod.record, pod.template, self._context)
                self.pods[pod.name] = pod
        self._context.changed()

    def _reap(self) -> None:
        for name in [name for name, task in self._tasks.items() if task.done()]:
            del self.pods[name], self._tasks[name]
        for old in sorted(self._config.logs.glob("*.log"), key=_modified)[:-_LOGS_KEPT]:
            if old.stem not in self.pods:
                old.unlink(missing_ok=True)


def desired_slot(desired: Mapping[str, DesiredModel], model: str, slot: Slot) -> DesiredSlot | None:
    """What is wanted in a slot, if anything."""
    slots = desired[model].slots if model in desired else ()
    return next((wanted for wanted in slots if wanted.slot is slot), None)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
