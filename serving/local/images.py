"""What must be true before a pod starts, and the model's files brought here.

The store is asked by digest only. The model image must carry a signature and a gate attestation of this very candidate, the
runtime image a signature; and the runtime must describe the serving environment that is installed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import pull_model
from lockgate.adapters.oci.runtime import read_runtime
from lockgate.adapters.signing import verify, verify_runtime
from lockgate.errors import RegistryError, VerificationError
from serving.local.config import AgentConfig
from serving.local.desired import PodTemplate


class Admission(Protocol):
    """Decides whether a pod may start, and brings its model."""

    def admit(self, template: PodTemplate) -> Path:
        """Directory with the model's files. Blocks. `LockgateError` says why the pod may not start (now)."""


class StoreAdmission:
    """Admission by the image store, the signing policy and the local environment."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config

    def admit(self, template: PodTemplate) -> Path:
        """`VerificationError` if an image is not what it must be, `RegistryError` if the store cannot be read."""
        config = self._config
        store = open_store(config.store, plain_http=config.plain_http)
        # No age here: a pod of what serves is started again however long ago its gates decided.
        for report in (
            verify_runtime(store, template.runtime, config.signing),
            verify(
                store, template.model, config.signing,
                candidate=template.candidate, require_gates=config.gates,
            ),
        ):  # fmt: skip
            if report.outage:
                raise RegistryError(
                    f"{report.image} cannot be verified now: "
                    + "; ".join(failure.message for failure in report.failures)
                )
            report.require()
        runtime = read_runtime(store, template.runtime)
        if runtime.engine != template.engine:
            raise VerificationError(
                f"the runtime image is one of {runtime.engine}, the pod asks for {template.engine}"
            )
        if config.runtime_environment is None or runtime.environment != config.runtime_environment:
            raise VerificationError(
                f"the candidate was tested on runtime environment {runtime.environment}, "
                f"installed here is {config.runtime_environment}",
                hint="make the serving environment from the candidate's lock, "
                "or release again on the present one",
            )
        target = config.snapshots / template.model.digest.hex
        pull_model(store, template.model, target)
        return target
