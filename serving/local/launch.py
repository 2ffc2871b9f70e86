"""Starts a pod's server process from its template, as a kubelet would, with the means of a plain user.

Without mount and network namespaces the container's paths and its port are translated: a volume's mount path in arguments
and environment becomes the directory that stands for it, and the engine is told another port.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lockgate.errors import ServingError
from serving.engines.registry import engine as engine_named
from serving.ephemeral import base_environment, temporary_environment
from serving.local.cpu_pool import CpuLease
from serving.local.desired import PodTemplate
from serving.local.gpu_pool import GpuLease
from serving.local.records import CLUSTER_VARIABLE, POD_VARIABLE
from serving.ports import LOOPBACK, PortReservation
from serving.priority import lower_priority
from serving.processes import ProcessId


@dataclass
class Launched:
    """A server process of ours. `handle` is to be polled, so that no zombie stays."""

    process: ProcessId
    port: int
    handle: subprocess.Popen[bytes]


def directories(template: PodTemplate, model: Path, volumes: Path) -> dict[str, str]:
    """Mount path in the container → directory here. Memory volumes under /dev stay what they are."""
    found = {}
    for mount in template.mounts:
        if mount.is_model:
            found[mount.path] = str(model)
        elif not mount.path.startswith("/dev/"):
            found[mount.path] = str(volumes / mount.volume)
    return found


def translated(text: str, mounts: Mapping[str, str]) -> str:
    """`text` with a leading mount path replaced by the directory that stands for it."""
    for path in sorted(mounts, key=len, reverse=True):
        if text == path or text.startswith(path.rstrip("/") + "/"):
            return mounts[path] + text[len(path.rstrip("/")) :]
    return text


def scratch_directory(cluster: str, pod: str) -> Path:
    """Where a pod's server keeps temporary files: short, for sockets, and the same for every agent that looks after the pod."""
    name = hashlib.sha256(f"{cluster}/{pod}".encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"lockgate-pod-{name}"


def _emptied(directory: Path) -> Path:
    """As a container's own layer: nothing of an earlier start is in it, and nobody else may look."""
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise ServingError(f"no directory for temporary files: {error}") from error
    return directory


def launch(
    template: PodTemplate,
    *,
    name: str,
    cluster: str,
    python: Path,
    model: Path,
    volumes: Path,
    log: Path,
    lease: CpuLease,
    lent: GpuLease,
) -> Launched:
    """Starts the server on a free port. It keeps its cores, GPUs and the port when this process is gone.

    `ServingError` if it cannot be started at all.
    """
    engine = engine_named(template.engine)
    mounts = directories(template, model, volumes)
    for directory in (str(volumes), *mounts.values()):
        Path(directory).mkdir(parents=True, exist_ok=True)
    try:
        reservation = PortReservation.any()
    except OSError as error:
        raise ServingError(f"no free port: {error}") from error
    with contextlib.closing(reservation):
        command = engine.local_command(
            python,
            [translated(a, mounts) for a in template.args],
            host=LOOPBACK,
            port=reservation.port,
        )
        environment = {
            **base_environment(),
            **temporary_environment(_emptied(scratch_directory(cluster, name))),
            **{key: translated(value, mounts) for key, value in template.env},
            **engine.placement(() if template.gpu else lease.cores, lent.gpus),
            CLUSTER_VARIABLE: cluster,
            POD_VARIABLE: name,
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                handle = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=volumes,
                    start_new_session=True,
                    pass_fds=(*lease.fds, *lent.fds, reservation.fileno()),
                )
        except OSError as error:
            raise ServingError(f"{command[0]} cannot be started: {error}", log=log) from error
    lower_priority(handle.pid)
    process = ProcessId.of(handle.pid)
    if process is None:
        raise ServingError(f"the server ended at once with exit code {handle.wait()}", log=log)
    return Launched(process, reservation.port, handle)
