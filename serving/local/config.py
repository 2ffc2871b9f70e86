"""What the agent is told when it is started."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.policy import SigningPolicy


class AgentConfig(Frozen):
    """Written to `<directory>/agent-config.json`; a change of it takes a restart of the agent, not of the servers."""

    cluster: str
    """Identity of this cluster: every process it starts carries it in its environment."""
    directory: Path
    """Logs, pods, gateway configuration, pulled models."""
    remote: str
    """URL or path of the GitOps repository."""
    branch: str = "main"
    environment: str = "local"
    store: str
    """Location of the image store, as `lockgate.adapters.oci.open_store` takes it."""
    plain_http: bool = False
    signing: SigningPolicy
    gates: tuple[str, ...] = Field(min_length=1)
    """Gates that the attestation of a candidate must have passed before one of its pods starts."""
    serving_python: Path
    runtime_environment: Digest | None
    """Digest of the local serving environment; a runtime image of another one is refused. None where it is not known:
    then every one is refused."""
    snapshots: Path
    """Where models are pulled to, `<hex of the image's digest>` each."""
    poll_seconds: float = Field(default=1.0, gt=0)
    cpu_pool: Path | None = None
    gateway_ports: dict[str, int] = Field(default_factory=dict)
    """Ports by model, where the user wants particular ones."""
    api_port: int = 0

    @property
    def pods(self) -> Path:
        return self.directory / "pods"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def mirror(self) -> Path:
        return self.directory / "mirror.git"

    @property
    def gateway(self) -> Path:
        return self.directory / "gateway"

    @property
    def lock(self) -> Path:
        return self.directory / "agent.lock"

    @property
    def record(self) -> Path:
        """Pid, start time and API port of the running agent."""
        return self.directory / "agent.json"
