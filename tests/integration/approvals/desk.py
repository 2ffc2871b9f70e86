"""A release that waits in a real Git repository, and `lockgate` as people run it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from lockgate.adapters.git import GitOpsRepository
from lockgate.cli import console
from lockgate.cli.app import app
from lockgate.domain import gitops
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition
from tests.integration.git.repositories import commits, git, repository, somebody_pushes
from tests.unit.approvals.people import Person
from tests.unit.rollout.world import Rollout


def render(state: ReleaseState, _root: Path) -> Mapping[str, str]:
    """Objects as real ones change: replicas, weights and the route's generation with the state, all else with the candidate."""
    directory = gitops.manifests_directory(state.model, state.environment)
    files: dict[str, object] = {}
    backends = []
    for slot, weight in state.weights().items():
        occupant = state.occupant(slot)
        assert occupant is not None
        backends.append({"name": f"m-{slot}", "weight": weight})
        files[f"deployment-{slot}.yaml"] = {
            "kind": "Deployment",
            "spec": {"replicas": state.replicas(slot), "image": str(occupant.candidate.model)},
        }
    files["httproute-m.yaml"] = {
        "kind": "HTTPRoute",
        "metadata": {"annotations": {"lockgate.dev/generation": str(state.generation)}},
        "spec": {"rules": [{"backendRefs": backends}]},
    }
    return {str(directory / name): gitops.dump_yaml(data) for name, data in files.items()}


PEOPLE = ("mara", "joe", "eve")


@dataclass
class Desk:
    """The remote, the people, and the release."""

    root: Path
    rollout: Rollout
    capture: pytest.CaptureFixture[str] | None = None

    @property
    def people(self) -> Mapping[str, Person]:
        names = {name: f"{name}@example.com" for name in PEOPLE}
        return {short: Person(name, self.root / name) for short, name in names.items()}

    @property
    def remote(self) -> Path:
        return self.root / "remote.git"

    @property
    def commits(self) -> list[str]:
        return commits(self.remote)

    def git(self, *arguments: str) -> str:
        return git(*arguments, at=self.remote)

    def repository(self, name: str = "tests") -> GitOpsRepository:
        found = repository(self.root, name)
        found.sync()
        return found

    def state(self) -> ReleaseState:
        return self.repository().read_state("m", "prod")

    def lockgate(self, *arguments: str) -> tuple[int, str]:
        """`lockgate …`: exit code and all that it printed."""
        assert self.capture is not None
        self.capture.readouterr()
        code = 0
        try:
            with console.errors_for_people():
                code = app(list(arguments), standalone_mode=False) or 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = self.capture.readouterr()
        return code, said.out + said.err

    def decides(self, who: str, *arguments: str, word: str = "approve") -> tuple[int, str]:
        key = str(self.people[who].key)
        return self.lockgate(word, "m", "--env", "prod", "--key", key, *arguments)

    def push(self, path: str, text: str) -> None:
        """Somebody with access pushes a file, without asking Lockgate."""
        somebody_pushes(self.root, path, text)

    def rule(self, **rule: object) -> None:
        """The policy's rule for `prod`."""
        policy = {"apiVersion": "lockgate.dev/v1", "kind": "Policy", "approvals": {"prod": rule}}
        self.push("policy.yaml", yaml.safe_dump(policy))

    def commit(self, transition: Transition) -> None:
        done = self.repository("driver").commit_transition(
            "m", "prod", lambda _: transition, render
        )
        assert done.committed

    def decision_files(self) -> dict[str, str]:
        return self.repository().files("models/m/prod/approvals")


def recently() -> datetime:
    """Requests expire by the real clock."""
    return datetime.now(UTC) - timedelta(minutes=10)
