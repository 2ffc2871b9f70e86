"""vLLM's arguments, another server behind them: for tests of the cluster. Also the agent that knows this engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lockgate.errors import RegistryError, VerificationError
from serving.engines import registry
from serving.engines.vllm import VllmEngine
from serving.local import agent
from serving.local.config import AgentConfig
from serving.local.desired import PodTemplate

SERVER = Path(__file__).with_name("tiny_server.py")


class TinyEngine(VllmEngine):
    def local_command(
        self, python: Path, arguments: Sequence[str], *, host: str, port: int
    ) -> list[str]:
        command = super().local_command(python, arguments, host=host, port=port)
        return [str(python), str(SERVER), *command[3:]]

    def version(self, python: Path) -> str:
        return "0"


class FileAdmission:
    """Admits every pod, but for a reason in the file `refuse-<first digits of the candidate>` or `outage`."""

    def __init__(self, snapshots: Path) -> None:
        self._snapshots = snapshots

    def admit(self, template: PodTemplate) -> Path:
        refusal = self._snapshots / f"refuse-{template.candidate.short}"
        if refusal.exists():
            raise VerificationError(refusal.read_text())
        if (self._snapshots / "outage").exists():
            raise RegistryError("the store is away")
        model = self._snapshots / template.model.digest.hex
        model.mkdir(parents=True, exist_ok=True)
        return model


def register() -> None:
    registry.ENGINES["vllm"] = TinyEngine()


if __name__ == "__main__":
    register()
    config = AgentConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
    sys.exit(agent.main(sys.argv[1:], FileAdmission(config.snapshots)))
