"""What a GitOps repository is laid down for, and how the template's files are made to say so.

The template is a real repository, made for the environment `local`, with the files of every cloud, agent and admission engine
in it. What was not chosen is left out; what was is named. Documents are changed as data and written anew.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lockgate.adapters.git.process import OPENPGP
from lockgate.adapters.git.secret_stores import name_fields, write_stores
from lockgate.domain import gitops
from lockgate.domain.images import ImageRef
from lockgate.errors import UsageError

Agent = Literal["embedded", "argocd", "flux"]
"""What applies the manifests; `embedded` is Lockgate's own local cluster, which needs no objects to be told."""
Cloud = Literal["eks", "gke", "aks", "onprem"]
Admission = Literal["none", "kyverno", "policy-controller"]
"""What verifies signatures when a pod is admitted, beside the rules that the API server enforces itself."""

_ENVIRONMENT = "local"
_KEY_ID = 16
"""Last digits of an OpenPGP key's fingerprint, by which Argo CD names it."""
_LOCKGATE = f"lockgate.invalid/lockgate@sha256:{'0' * 64}"
_REMOTE = "https://git.example.com/platform/gitops.git"
_IMAGES = "registry.example.com/ml"
_KEY_URI = "LOCKGATE_SIGNING_KEY_URI"
_KEY_SERVICES = {
    "eks": "awskms:alias/lockgate-release",
    "gke": "gcpkms:projects/example-project/locations/example-region/keyRings/lockgate/cryptoKeys/release/cryptoKeyVersions/1",
    "aks": "azurekms://example.vault.azure.net/keys/lockgate-release",
}
_KEY = "-----BEGIN PUBLIC KEY-----\nreplaced by lockgate init\n-----END PUBLIC KEY-----\n"


@dataclass(frozen=True)
class Layout:
    """What a repository is for.

    `UsageError` for names that are no DNS labels, a name given twice, and for an agent of a real cluster without a cloud, or
    a cloud without one.
    """

    environments: tuple[str, ...]
    agent: Agent
    cloud: Cloud | None = None
    """None: the embedded cluster."""
    admission: Admission = "kyverno"
    monitoring: bool = False
    """Whether the cluster has the Prometheus operator: then scrapes, rules and alerts are laid down for it."""
    lockgate_image: ImageRef | None = None
    """Lockgate's own image (docs/image.md): then what Git says of releases is served to Prometheus, and the work pool's steps run in it."""
    committer: str | None = None
    """What signs Lockgate's commits, as git is told it. With an OpenPGP key Argo CD's projects are given its id to verify."""
    remote: str | None = None
    """The repository's address as the agents reach it."""
    images: str | None = None
    """Host and path prefix of the image repositories. None: the template's example stays, to be written in by hand."""

    def __post_init__(self) -> None:
        for environment in self.environments:
            gitops.environment_directory("model", environment)
        if not self.environments or len(set(self.environments)) != len(self.environments):
            raise UsageError(
                f"environments must be named, each once: {', '.join(self.environments)}"
            )
        if self.agent == "embedded" and self.cloud is not None:
            raise UsageError(
                f"the embedded cluster is no {self.cloud}", hint="add --agent argocd or flux"
            )
        if self.agent != "embedded" and self.cloud is None:
            raise UsageError(
                f"{self.agent} runs in a cluster: which one?",
                hint="add --cloud eks, gke, aks or onprem",
            )
        if self.agent == "embedded" and self.monitoring:
            raise UsageError(
                "the embedded cluster has no Prometheus operator", hint="leave --monitoring out"
            )
        if self.agent == "embedded" and self.lockgate_image is not None:
            raise UsageError(
                "the embedded cluster runs Lockgate from where it is installed",
                hint="leave --lockgate-image out",
            )


EMBEDDED = Layout(environments=(_ENVIRONMENT,), agent="embedded")
"""A workspace's own repository, for the embedded cluster."""


def arrange(root: Path, layout: Layout, public_key_pem: str) -> None:
    """Make a copy of the template in `root` the repository that `layout` says."""
    if layout.agent == "embedded":
        for name in ("clusters", "clouds"):
            shutil.rmtree(root / name)
    else:
        _choose(root / "clouds", {str(layout.cloud)})
        _choose(root / "clusters" / _ENVIRONMENT, {layout.agent})
        _choose(root / "platform/cluster/admission", {"native", layout.admission})
        _write_shared(root, layout, public_key_pem)
        _write_image(root, layout)
        _write_secrets(root, layout)
        _extend(
            root / "platform/environments" / _ENVIRONMENT / "kustomization.yaml",
            resources=[f"agent-{layout.agent}.yaml"],
            components=[
                "../../components/external-secrets",
                f"../../../clouds/{layout.cloud}/secrets",
            ],
        )
    for path in (root / "platform/environments" / _ENVIRONMENT).glob("agent-*.yaml"):
        if path.stem != f"agent-{layout.agent}":
            path.unlink()
    for app in sorted((root / "apps").glob(f"*/environments/{_ENVIRONMENT}")):
        if layout.cloud is not None and (root / "clouds" / layout.cloud / "gpu").is_dir():
            (app / "gpu").mkdir()
            component = {
                "apiVersion": "kustomize.config.k8s.io/v1alpha1",
                "kind": "Component",
                "components": [f"../../../../../clouds/{layout.cloud}/gpu"],
            }
            (app / "gpu" / "kustomization.yaml").write_text(gitops.dump_yaml(component))
    for environment in layout.environments:
        _name(root, environment, layout)
    if _ENVIRONMENT not in layout.environments:
        for directory in _own_directories(root):
            shutil.rmtree(directory)


def _choose(directory: Path, kept: set[str]) -> None:
    for child in directory.iterdir():
        if child.is_dir() and child.name not in kept:
            shutil.rmtree(child)


def _write_shared(root: Path, layout: Layout, public_key_pem: str) -> None:
    """What every environment shares: whose key counts, where images lie, and the admission engine of the cluster."""

    def change(text: str) -> str:
        if text == _KEY:
            return public_key_pem
        return text.replace(f"{_IMAGES}/", f"{layout.images}/") if layout.images else text

    for path in sorted((root / "platform/cluster").rglob("*.yaml")):
        _rewrite(path, path, change)
    chosen_parts = []
    if layout.admission != "none":
        chosen_parts.append(f"../../../platform/cluster/admission/{layout.admission}")
    if layout.monitoring:
        chosen_parts.append("../../../platform/monitoring")
    for cluster in sorted((root / "clouds").glob("*/cluster/kustomization.yaml")):
        if chosen_parts:
            _extend(cluster, components=chosen_parts)

    def chosen(text: str) -> str:
        return re.sub(r"clouds/[a-z]+/cluster$", f"clouds/{layout.cloud}/cluster", text)

    for path in sorted((root / "clusters").rglob("*.yaml")):
        _rewrite(path, path, chosen)
    if layout.agent == "argocd" and layout.committer and layout.committer.startswith(OPENPGP):
        for path in sorted((root / "clusters").rglob("*.yaml")):
            _verify_commits(path, layout.committer[-_KEY_ID:].upper())


def _write_image(root: Path, layout: Layout) -> None:
    """Name Lockgate's own image where it is needed, and take up what needs it; without one that stands there unused."""
    platform = root / "platform"
    states = platform / "state-metrics" / "deployment.yaml"
    named = {_REMOTE: layout.remote or _REMOTE}
    if layout.lockgate_image is not None:
        named[_LOCKGATE] = str(layout.lockgate_image)
        cluster = root / "clouds" / str(layout.cloud) / "cluster" / "kustomization.yaml"
        _extend(cluster, resources=["../../../platform/state-metrics"])

    def change(text: str) -> str:
        for old, new in named.items():
            text = text.replace(old, new)
        return text

    for path in (states, platform / "prefect" / "workpool.yaml"):
        _rewrite(path, path, change)


def _write_secrets(root: Path, layout: Layout) -> None:
    """A store beside every namespace's secrets, and what pulls images where no cloud's nodes have an identity for that."""
    cloud = root / "clouds" / str(layout.cloud)
    store = cloud / "secrets" / "secretstore.yaml"
    agent = root / "clusters" / _ENVIRONMENT / layout.agent
    write_stores(store, agent / "secretstore.yaml", [agent / "secrets.yaml"])
    platform = root / "platform"
    applied = [
        *(platform / "cluster").glob("*.yaml"),
        platform / "prefect" / "externalsecrets.yaml",
    ]
    applied += (platform / "state-metrics").glob("externalsecret.yaml")
    applied += (cloud / "cluster").glob("externalsecrets.yaml")
    if layout.cloud == "onprem":
        applied.append(platform / "cluster" / "registry-pull" / "externalsecrets.yaml")
    write_stores(store, cloud / "cluster" / "secretstores.yaml", applied)
    _extend(cloud / "cluster" / "kustomization.yaml", resources=["secretstores.yaml"])
    prefect = platform / "prefect"
    own = [prefect / "externalsecrets.yaml"]
    write_stores(store, prefect / "secretstore.yaml", own, of_prefect=True)
    _extend(prefect / "kustomization.yaml", resources=["secretstore.yaml"])
    if layout.cloud == "onprem":
        environment = platform / "environments" / _ENVIRONMENT / "kustomization.yaml"
        _extend(environment, components=["../../components/registry-pull"])
        for app in sorted(
            (root / "apps").glob(f"*/environments/{_ENVIRONMENT}/kustomization.yaml")
        ):
            _extend(app, components=["../../components/pull-secret"])
        for path in sorted(root.glob("*/**/*secret*.yaml")):
            name_fields(path)
    _write_settings(platform / "prefect" / "settings.yaml", layout)


def _write_settings(path: Path, layout: Layout) -> None:
    """What this page of the steps' settings follows from: the agent, the repository, and what holds the release key."""
    documents = list(yaml.safe_load_all(path.read_text()))
    for document in documents:
        data = document["data"]
        chosen = {
            "LOCKGATE_AGENT": layout.agent,
            "LOCKGATE_REMOTE": layout.remote,
            _KEY_URI: _KEY_SERVICES.get(str(layout.cloud)),
        }
        data.update({k: v for k, v in chosen.items() if k in data and v is not None})
        if layout.cloud == "onprem":  # the key itself is in a Secret of the step
            data.pop(_KEY_URI, None)
            data.pop("LOCKGATE_SIGNING_PUBLIC_KEY", None)
    path.write_text("---\n".join(gitops.dump_yaml(document) for document in documents))


def _verify_commits(path: Path, key: str) -> None:
    """Let the projects in this file apply commits of this key alone. Argo CD verifies OpenPGP and nothing else."""
    documents = list(yaml.safe_load_all(path.read_text()))
    projects = [d for d in documents if d["kind"] == "AppProject"]
    for project in projects:
        project["spec"]["signatureKeys"] = [{"keyID": key}]
    if projects:
        path.write_text("---\n".join(gitops.dump_yaml(document) for document in documents))


def _own_directories(root: Path) -> list[Path]:
    patterns = ("clusters", "platform/environments", "apps/*/environments")
    return [found for pattern in patterns for found in root.glob(f"{pattern}/{_ENVIRONMENT}")]


def _name(root: Path, environment: str, layout: Layout) -> None:
    """Copy what the template has for its own environment, with this one's and the remote's names in it."""
    own = re.compile(
        rf"(?<=lockgate-){_ENVIRONMENT}\b|(?<=-){_ENVIRONMENT}$|(?<=/){_ENVIRONMENT}(?=/|$)", re.M
    )

    def change(text: str) -> str:
        if text == _REMOTE:
            return layout.remote or text
        return own.sub(environment, text)

    for directory in _own_directories(root):
        target = directory.with_name(environment)
        for path in sorted(directory.rglob("*")):
            copy = target / path.relative_to(directory)
            if path.suffix == ".yaml":
                copy.parent.mkdir(parents=True, exist_ok=True)
                _rewrite(path, copy, change)


def _rewrite(path: Path, target: Path, change: Callable[[str], str]) -> None:
    """The documents of `path` with every string changed; an unchanged file keeps its comments."""
    text = path.read_text()
    documents = list(yaml.safe_load_all(text))
    changed = [_map_strings(document, change) for document in documents]
    if changed != documents:
        text = "---\n".join(gitops.dump_yaml(document) for document in changed)
    if target != path or changed != documents:
        target.write_text(text)


def _extend(path: Path, **lists: list[str]) -> None:
    """Add entries to a kustomization's lists."""
    data = yaml.safe_load(path.read_text())
    for key, entries in lists.items():
        data[key] = [*data.get(key, []), *entries]
    path.write_text(gitops.dump_yaml(data))


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value
