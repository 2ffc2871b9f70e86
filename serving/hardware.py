"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Fingerprint
from lockgate.domain.spec import ServingSpec
from serving.engines.base import Engine


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


def fingerprint(
    engine: Engine, serving: ServingSpec, *, python: Path, cores: tuple[int, ...]
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
