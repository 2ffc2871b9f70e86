"""What is remembered of a pod on disk, so that its server outlives the agent."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from signal import SIGKILL
from typing import Any

from pydantic import ValidationError

from lockgate.domain.base import Frozen
from serving.local.config import AgentConfig
from serving.processes import ProcessId, environment_of, marked

log = logging.getLogger(__name__)

CLUSTER_VARIABLE = "LOCKGATE_LOCAL_CLUSTER"
POD_VARIABLE = "LOCKGATE_LOCAL_POD"
GATEWAY_VARIABLE = "LOCKGATE_LOCAL_GATEWAY"
AGENT_VARIABLE = "LOCKGATE_LOCAL_AGENT"
SUPERVISOR_VARIABLE = "LOCKGATE_LOCAL_SUPERVISOR"
"""In the environment of every process of a cluster: it is found by them when a record was lost."""


class PodRecord(Frozen):
    """`pods/<name>/pod.json`."""

    name: str
    model: str
    slot: str
    deployment: str
    template: dict[str, Any]
    """The pod template as the manifest had it."""
    created: float
    pid: int | None = None
    start: int | None = None
    port: int | None = None
    cores: tuple[int, ...] = ()
    exclusive: bool = False
    admitted: str | None = None
    """Directory of the verified model: a restart after a crash needs no image store."""
    started: bool = False
    ready: bool = False
    restarts: int = 0
    failed_starts: int = 0
    """Crashes since it was last ready for a while."""
    terminating: float | None = None
    last_exit: str | None = None

    @property
    def process(self) -> ProcessId | None:
        if self.pid is None or self.start is None:
            return None
        return ProcessId(self.pid, self.start)


def write_record(directory: Path, record: PodRecord) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / ".pod.json"
    temporary.write_text(record.model_dump_json())
    temporary.rename(directory / "pod.json")


def read_records(config: AgentConfig) -> list[PodRecord]:
    """Records of the pods that an earlier agent left. A process without a record is ended: nobody would ever find it."""
    records = []
    for path in sorted(config.pods.glob("*/pod.json")):
        try:
            records.append(PodRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            log.error("%s cannot be read: %s", path, error)
    known = {record.name: record for record in records}
    for process in marked(CLUSTER_VARIABLE, config.cluster):
        name = environment_of(process.pid).get(POD_VARIABLE)
        record = known.get(name) if name else None
        if name and (record is None or record.process is None):
            log.warning("process %d of pod %s was not recorded: ended", process.pid, name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, SIGKILL)
    return records
