"""What `lockgate init` lays down: a repository that agents, writers and people can use as it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.adapters.git import (
    EMBEDDED,
    Agent,
    Cloud,
    GitOpsRepository,
    Layout,
    lay_down,
    template_directory,
)
from lockgate.domain.evidence import Severity
from lockgate.domain.policy import ImageScanPolicy, Policy
from lockgate.errors import UsageError
from tests.integration.git.layouts import PEM, lay_files
from tests.integration.git.repositories import commits, git, make_remote, releasing, render

URL = "ssh://git@git.example.org/acme/gitops.git"


def laid_down(root: Path, environment: str, agent: Agent) -> Path:
    """The files only, as an agent with that remote would find them: nothing is pushed."""
    remote = None if agent == "embedded" else URL
    cloud: Cloud | None = None if agent == "embedded" else "onprem"
    return lay_files(
        root / f"{environment}-{agent}",
        Layout(environments=(environment,), agent=agent, cloud=cloud, remote=remote),
    )


def embedded(remote: Path | None) -> Layout:
    return replace(EMBEDDED, remote=None if remote is None else str(remote))


def objects(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(root.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def test_a_repository_is_laid_down_once_and_written_to_at_once(tmp_path: Path) -> None:
    remote = tmp_path / "gitops.git"
    options: dict[str, Any] = {
        "layout": embedded(remote),
        "public_key_pem": PEM,
        "policy": Policy(images=ImageScanPolicy(trivy="optional", block_at=Severity.CRITICAL)),
    }
    first = lay_down(template_directory(), tmp_path / "init", **options)
    assert first.created
    for target in ("init", "elsewhere"):
        again = lay_down(template_directory(), tmp_path / target, **options)
        assert (again.commit, again.created) == (first.commit, False)
    repo = GitOpsRepository(str(remote), tmp_path / "checkout")
    policy = repo.read_policy()
    assert policy.signing.public_keys == (PEM,)
    assert policy.images.trivy == "optional"
    assert repo.states() == ()
    assert repo.commit_transition("m", "local", releasing("one"), render).committed
    assert not lay_down(template_directory(), tmp_path / "init", **options).created
    assert len(commits(remote)) == 2


def test_without_a_remote_the_target_is_the_repository(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "layout": embedded(None),
        "public_key_pem": PEM,
    }
    first = lay_down(template_directory(), tmp_path / "repo", **options)
    again = lay_down(template_directory(), tmp_path / "repo", **options)
    assert (first.created, again.created, again.commit) == (True, False, first.commit)
    assert git("status", "--porcelain", at=tmp_path / "repo") == ""


def test_a_laid_down_remote_refuses_a_rewritten_history(tmp_path: Path) -> None:
    remote = tmp_path / "gitops.git"
    lay_down(
        *(template_directory(), tmp_path / "init"),
        layout=embedded(remote), public_key_pem=PEM,
    )  # fmt: skip
    work = tmp_path / "init"
    git("commit", "--quiet", "--amend", "-m", "Another past", at=work)
    done = subprocess.run(
        ["git", "push", "--force", "origin", "HEAD:main"],
        cwd=work, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "denying non-fast-forward" in done.stderr


def test_somebody_elses_repository_is_left_alone(tmp_path: Path) -> None:
    remote = make_remote(tmp_path)
    git("rm", "--quiet", "policy.yaml", at=tmp_path / "somebody")
    git("commit", "--quiet", "-m", "No policy", at=tmp_path / "somebody")
    git("push", "--quiet", "origin", "HEAD:main", at=tmp_path / "somebody")
    before = commits(remote)
    with pytest.raises(UsageError, match="some other repository"):
        lay_down(
            *(template_directory(), tmp_path / "init"),
            layout=embedded(remote), public_key_pem=PEM,
        )  # fmt: skip
    assert commits(remote) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        lay_down(
            *(template_directory(), tmp_path / "full"),
            layout=embedded(None), public_key_pem=PEM,
        )  # fmt: skip


@pytest.mark.parametrize("agent", ["argocd", "flux"])
def test_a_cluster_agent_is_not_told_to_read_a_path_of_this_machine(
    tmp_path: Path, agent: Agent
) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        lay_down(
            *(template_directory(), tmp_path / "init"),
            layout=Layout(("prod",), agent, "eks", remote=str(tmp_path / "r.git")),
            public_key_pem=PEM,
        )  # fmt: skip
    assert not (tmp_path / "r.git").exists()


@pytest.mark.parametrize("environment", ["local", "prod-eu"])
@pytest.mark.parametrize("agent", ["embedded", "argocd", "flux"])
def test_a_repository_names_its_own_environment_and_its_own_remote(
    tmp_path: Path, environment: str, agent: Agent
) -> None:
    root = laid_down(tmp_path, environment, agent)
    own = [root / d for d in ("clusters", "platform/environments", "apps/vllm/environments")]
    files = [path for directory in own for path in directory.rglob("*.yaml")]
    text = "".join(path.read_text() for path in files)
    assert "git.example.com" not in text
    assert (URL in text) is (agent != "embedded")
    assert f"lockgate-{environment}" in text
    if environment != "local":
        assert "local/" not in text
        assert "-local" not in text
        leftovers = [p for p in root.rglob("local") if ".git" not in p.parts]
        assert leftovers == []


def test_argo_cd_and_flux_apply_without_waiting_for_health(tmp_path: Path) -> None:
    for agent in ("argocd", "flux"):
        for _, found in objects(laid_down(tmp_path, "prod", agent) / "clusters"):  # type: ignore[arg-type]
            if found["kind"] == "Kustomization":
                assert found["spec"]["wait"] is False
                assert "healthChecks" not in found["spec"]
            assert "argocd.argoproj.io/sync-wave" not in json.dumps(found)


def test_flux_sees_the_manifests_of_its_environment_and_nothing_else(tmp_path: Path) -> None:
    root = laid_down(tmp_path, "prod", "flux")
    ignored = {
        found["metadata"]["name"]: found["spec"]["ignore"]
        for _, found in objects(root / "clusters")
        if found["kind"] == "GitRepository"
    }
    tree = tmp_path / "tree"
    for path in (
        "models/m/prod/manifests/deployment-m-a.yaml",
        "models/m/prod/manifests/httproute-m.yaml",
        "models/m/prod/release.yaml",
        "models/m/prod/verdicts/x.json",
        "models/m/staging/manifests/httproute-m.yaml",
        "models/m/staging/manifests/deployment-m-a.yaml",
        "models/m/track.yaml",
        "policy.yaml",
        "platform/base/quota.yaml",
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).touch()
    git("init", "--quiet", at=tree)
    seen = {}
    for name, ignore in ignored.items():
        (tree / ".git/info/exclude").write_text(ignore)
        seen[name] = git("ls-files", "--others", "--exclude-standard", at=tree).split()
    assert seen == {
        "lockgate-routes-prod": ["models/m/prod/manifests/httproute-m.yaml"],
        "lockgate-models-prod": ["models/m/prod/manifests/deployment-m-a.yaml"],
        "lockgate-platform-prod": ["platform/base/quota.yaml"],
    }
