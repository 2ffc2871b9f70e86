"""Bare remotes on this disk, writers, and the manifests that tests commit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from lockgate.adapters.git import GitOpsRepository
from lockgate.domain import gitops
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition, Wait, start
from tests.unit.rollout.world import BEGIN, SPEC, Rollout, occupant

IDENTITY = {
    "GIT_AUTHOR_NAME": "Somebody",
    "GIT_AUTHOR_EMAIL": "somebody@example.com",
    "GIT_COMMITTER_NAME": "Somebody",
    "GIT_COMMITTER_EMAIL": "somebody@example.com",
}


def git(*arguments: str, at: Path, check: bool = True) -> str:
    """Plain git, not the adapter's."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=at,
        env={**os.environ, **IDENTITY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def make_remote(root: Path) -> Path:
    """A bare remote with one commit that holds a policy."""
    remote, work = root / "remote.git", root / "somebody"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(remote), at=root)
    git("clone", "--quiet", str(remote), str(work), at=root)
    (work / "policy.yaml").write_text("apiVersion: lockgate.dev/v1\nkind: Policy\n")
    git("add", "--all", at=work)
    git("commit", "--quiet", "-m", "Begin", at=work)
    git("push", "--quiet", "origin", "HEAD:main", at=work)
    return remote


def somebody_pushes(root: Path, path: str, text: str) -> None:
    """Another writer's commit to the remote."""
    work = root / "somebody"
    git("pull", "--quiet", "--rebase", "origin", "main", at=work)
    (work / path).parent.mkdir(parents=True, exist_ok=True)
    (work / path).write_text(text)
    git("add", "--all", at=work)
    git("commit", "--quiet", "-m", f"Write {path}", at=work)
    git("push", "--quiet", "origin", "HEAD:main", at=work)


def repository(root: Path, name: str = "checkout", **options: object) -> GitOpsRepository:
    return GitOpsRepository(str(root / "remote.git"), root / name, **{"timeout": 20.0, **options})  # type: ignore[arg-type]


def render(state: ReleaseState, _root: Path) -> Mapping[str, str]:
    directory = gitops.manifests_directory(state.model, state.environment)
    return {
        str(directory / f"{slot}.yaml"): gitops.dump_yaml({"slot": str(slot), "weight": weight})
        for slot, weight in state.weights().items()
    }


def releasing(name: str) -> Callable[[ReleaseState], Transition | Wait]:
    return lambda state: start(state, occupant(name), SPEC, BEGIN)


def taking(rollout: Rollout) -> Callable[[ReleaseState], Transition | Wait | None]:
    """Hands on the rollout's last transition, if it follows the state."""

    def build(state: ReleaseState) -> Transition | None:
        last = rollout.transitions[-1]
        return last if last.state.generation == state.generation + 1 else None

    return build


def commit_last(repo: GitOpsRepository, rollout: Rollout) -> str:
    result = repo.commit_transition("m", "prod", taking(rollout), render)
    assert result.committed
    return result.commit


def commits(remote: Path) -> list[str]:
    return git("rev-list", "main", at=remote).split()
