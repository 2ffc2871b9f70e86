"""What `lockgate init` lays down: a repository that agents, writers and people can use as it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lockgate.adapters.git import Agent, GitOpsRepository, lay_down, template_directory
from lockgate.domain.evidence import Severity
from lockgate.domain.policy import ImageScanPolicy, Policy
from lockgate.errors import UsageError
from tests.integration.git.repositories import commits, git, make_remote, releasing, render

PEM = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQ==\n-----END PUBLIC KEY-----\n"
URL = "ssh://git@git.example.org/acme/gitops.git"
KUBERNETES = "1.33"


def laid_down(root: Path, environment: str, agent: Agent) -> Path:
    """The files only, as an agent with that remote would find them: nothing is pushed."""
    from lockgate.adapters.git import template

    target = root / f"{environment}-{agent}"
    runner = template.GitRunner(target, author=template.LOCKGATE, timeout=30)
    remote = None if agent == "embedded" else URL
    template._make(
        template_directory(), target, environment, agent, PEM, remote, None, "main", runner
    )
    return target


def objects(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(root.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def check(found: dict[str, Any]) -> None:
    """Strict validation of one object; an unknown kind fails."""
    group = found["apiVersion"].rpartition("/")[0]
    version = found["apiVersion"].rpartition("/")[2]
    own = ("networking.k8s.io", "rbac.authorization.k8s.io")
    if group.endswith((".io", ".fluxcd.io")) and group not in own:
        schema = (
            template_directory() / "schemas" / group / f"{found['kind'].lower()}_{version}.json"
        )
        jsonschema.validate(found, json.loads(schema.read_text()))
    else:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_a_repository_is_laid_down_once_and_written_to_at_once(tmp_path: Path) -> None:
    remote = tmp_path / "gitops.git"
    options: dict[str, Any] = {
        "environment": "local",
        "agent": "embedded",
        "public_key_pem": PEM,
        "remote": str(remote),
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
        "environment": "local",
        "agent": "embedded",
        "public_key_pem": PEM,
        "remote": None,
    }
    first = lay_down(template_directory(), tmp_path / "repo", **options)
    again = lay_down(template_directory(), tmp_path / "repo", **options)
    assert (first.created, again.created, again.commit) == (True, False, first.commit)
    assert git("status", "--porcelain", at=tmp_path / "repo") == ""


def test_a_laid_down_remote_refuses_a_rewritten_history(tmp_path: Path) -> None:
    remote = tmp_path / "gitops.git"
    lay_down(
        *(template_directory(), tmp_path / "init"),
        environment="local", agent="embedded", public_key_pem=PEM, remote=str(remote),
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
            environment="local", agent="embedded", public_key_pem=PEM, remote=str(remote),
        )  # fmt: skip
    assert commits(remote) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        lay_down(
            *(template_directory(), tmp_path / "full"),
            environment="local", agent="embedded", public_key_pem=PEM, remote=None,
        )  # fmt: skip


@pytest.mark.parametrize("agent", ["argocd", "flux"])
def test_a_cluster_agent_is_not_told_to_read_a_path_of_this_machine(
    tmp_path: Path, agent: Agent
) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        lay_down(
            *(template_directory(), tmp_path / "init"),
            environment="prod", agent=agent, public_key_pem=PEM, remote=str(tmp_path / "r.git"),
        )  # fmt: skip
    assert not (tmp_path / "r.git").exists()


@pytest.mark.parametrize("environment", ["local", "prod-eu"])
@pytest.mark.parametrize("agent", ["embedded", "argocd", "flux"])
def test_every_object_is_valid_and_names_its_own_environment(
    tmp_path: Path, kubectl: Path, environment: str, agent: Agent
) -> None:
    root = laid_down(tmp_path, environment, agent)
    told = list(objects(root / "clusters"))
    assert bool(told) is (agent != "embedded")
    rendered = subprocess.run(
        [str(kubectl), "kustomize", str(root / "platform/environments" / environment)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    platform = list(yaml.safe_load_all(rendered))
    assert {o["kind"] for o in platform} == {"Namespace", "NetworkPolicy", "ResourceQuota"}
    for found in [*platform, *(o for _, o in told)]:
        check(found)
    for found in platform:
        name = found["metadata"].get("namespace", found["metadata"]["name"])
        assert name == f"lockgate-{environment}"
    text = "".join(path.read_text() for path, _ in told)
    assert "git.example.com" not in text
    if environment != "local":
        assert "local/" not in text
        assert "-local" not in text
        leftovers = [p for p in root.rglob("local") if ".git" not in p.parts]
        assert leftovers == []
    if told:
        assert URL in text


def test_the_namespace_of_test_servers_is_valid_closed_and_gives_rights_there_alone(
    kubectl: Path,
) -> None:
    rendered = subprocess.run(
        [str(kubectl), "kustomize", str(template_directory() / "platform" / "tests")],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    found = {o["kind"]: o for o in yaml.safe_load_all(rendered)}
    for one in found.values():
        check(one)
    namespaced = [o for o in found.values() if "namespace" in o["metadata"]]
    assert {o["metadata"]["namespace"] for o in namespaced} == {"lockgate-tests"}
    assert "egress" not in found["NetworkPolicy"]["spec"]
    assert "Egress" in found["NetworkPolicy"]["spec"]["policyTypes"]
    (everywhere,) = found["ClusterRole"]["rules"]
    assert (everywhere["resources"], everywhere["verbs"]) == (["nodes"], ["get"])
    allowed = {resource for rule in found["Role"]["rules"] for resource in rule["resources"]}
    assert allowed == {"jobs", "services", "pods", "pods/log"}


def test_argo_cd_and_flux_apply_without_waiting_for_health(tmp_path: Path) -> None:
    for agent in ("argocd", "flux"):
        for _, found in objects(laid_down(tmp_path, "prod", agent) / "clusters"):  # type: ignore[arg-type]
            if found["kind"] == "Kustomization":
                assert found["spec"]["wait"] is False
                assert "healthChecks" not in found["spec"]
            assert "argocd.argoproj.io/sync-wave" not in json.dumps(found)


def test_flux_sees_the_manifests_of_its_environment_and_nothing_else(tmp_path: Path) -> None:
    root = laid_down(tmp_path, "prod", "flux")
    [ignore] = [
        found["spec"]["ignore"]
        for _, found in objects(root / "clusters")
        if found["kind"] == "GitRepository" and found["metadata"]["name"] == "lockgate-models-prod"
    ]
    tree = tmp_path / "tree"
    for path in (
        "models/m/prod/manifests/a.yaml",
        "models/m/prod/release.yaml",
        "models/m/prod/verdicts/x.json",
        "models/m/staging/manifests/a.yaml",
        "models/m/track.yaml",
        "policy.yaml",
        "platform/base/quota.yaml",
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).touch()
    git("init", "--quiet", at=tree)
    (tree / ".git/info/exclude").write_text(ignore)
    seen = git("ls-files", "--others", "--exclude-standard", at=tree).split()
    assert seen == ["models/m/prod/manifests/a.yaml"]


def test_the_repositorys_own_check_finds_tags_and_says_what_it_did_not_check(
    tmp_path: Path, kubectl: Path
) -> None:
    root = laid_down(tmp_path, "prod", "argocd")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").symlink_to(kubectl)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}

    def validate(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(root / "scripts/validate.sh"), *arguments],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = validate("--without-schemas")
    assert (done.returncode, "NOT CHECKED" in done.stdout) == (0, True), done.stdout + done.stderr
    assert validate().returncode == 1
    manifests = root / "models/m/prod/manifests"
    manifests.mkdir(parents=True)
    (manifests / "pod.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n    - image: vllm:latest\n"
    )
    tagged = validate("--without-schemas")
    assert tagged.returncode == 1
    assert "vllm:latest" in tagged.stdout
