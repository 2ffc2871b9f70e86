"""What Lockgate asks of a serving engine.

An engine turns a `ServingSpec` into the arguments and environment of its server (the same in a cluster, in the embedded
cluster and in a test server), and says how to start that server from a local Python environment. It knows no slot, no
release and no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lockgate.domain.engine_support import Capability
from lockgate.domain.serving_support import EngineSupport
from lockgate.domain.spec import ServingSpec
from lockgate.errors import UsageError

#: Variables that would let a committed spec run code of its own choice in the engine's process.
FORBIDDEN_ENVIRONMENT = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PATH", "HOME")
FORBIDDEN_ENVIRONMENT_PREFIXES = ("PYTHON", "LOCKGATE_")


class Engine(Protocol):
    """A serving engine with an OpenAI-compatible HTTP API and Prometheus metrics."""

    @property
    def name(self) -> str:
        """Key in the registry, and `ServingSpec.engine`."""

    @property
    def container(self) -> str:
        """Name of the server's container in a pod."""

    @property
    def lacks(self) -> Mapping[Capability, str]:
        """What it cannot do in a rollout, each with the reason that `lockgate plan` gives. Empty: nothing is lacking."""

    @property
    def one_object(self) -> bool:
        """Whether stable and candidate are two versions of one object, so that neither can be taken away by itself."""

    @property
    def port(self) -> int:
        """Port the server listens on inside a pod."""

    @property
    def health_path(self) -> str: ...

    @property
    def metrics_path(self) -> str: ...

    def arguments(
        self, serving: ServingSpec, *, model_path: str, host: str, port: int
    ) -> list[str]:
        """Arguments of the server. `UsageError` if the spec sets what Lockgate owns."""

    def pod_arguments(self, serving: ServingSpec) -> list[str]:
        """The arguments in a pod, where the model is mounted. Errors as of `arguments`."""

    def environment(self, serving: ServingSpec) -> dict[str, str]:
        """Environment of the server. `UsageError` if the spec sets what Lockgate owns."""

    def command(self) -> list[str]:
        """What the runtime image runs before the arguments."""

    def local_command(
        self, python: Path, arguments: Sequence[str], *, host: str, port: int
    ) -> list[str]:
        """A whole command line from a local environment's `python` and a container's arguments, at another address.

        Processes have no network namespace of their own, so here every server needs its own port.
        """

    def placement(self, cores: Sequence[int], gpus: Sequence[str] = ()) -> dict[str, str]:
        """Environment that binds the server to these CPU cores and shows it these GPUs alone; empty for none."""

    def version(self, python: Path) -> str:
        """The engine's version in a local environment. `ServingError` if it is not installed there."""

    def support(
        self, python: Path, schemes: Sequence[str], environment: Mapping[str, str]
    ) -> EngineSupport:
        """What the engine in a local environment says it serves on this machine, of quantized weights of these schemes.

        Starts a process and takes seconds. `ServingError` if it cannot be asked.
        """


def refuse_forbidden_environment(env: Mapping[str, str], owned: Sequence[str]) -> None:
    """Raises `UsageError` for a variable that a committed spec must not set."""
    for name in env:
        if name in owned or name in FORBIDDEN_ENVIRONMENT:
            raise UsageError(
                f"serving.env must not set {name}: Lockgate sets it",
                hint="remove it from the spec",
            )
        if name.startswith(FORBIDDEN_ENVIRONMENT_PREFIXES):
            raise UsageError(
                f"serving.env must not set {name}: it would change how the process itself runs",
                hint="remove it from the spec",
            )
