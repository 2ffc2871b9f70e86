"""What Argo CD or Flux says of itself, and how it is asked to look at once.

An agent's word is for the operator's message: whether a commit is in force is decided from the live objects. Asking goes by
the agent's webhook, which needs no right in the cluster; the annotations that would do it too (`argocd.argoproj.io/refresh`,
`reconcile.fluxcd.io/requestedAt`) need `patch` on the agent's own objects, and Lockgate has none.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from lockgate.adapters.kube.api import Kind, Reader
from lockgate.errors import ClusterError

APPLICATIONS = Kind("argoproj.io", "v1alpha1", "applications")
KUSTOMIZATIONS = Kind("kustomize.toolkit.fluxcd.io", "v1", "kustomizations")
GIT_REPOSITORIES = Kind("source.toolkit.fluxcd.io", "v1", "gitrepositories")
_WEBHOOK_SECONDS = 5.0


@dataclass(frozen=True)
class AgentReport:
    """An agent's word."""

    seen: str | None
    """The commit that it looked at last."""
    applied: str | None
    """The commit that it says is applied."""
    trouble: str | None
    """What keeps it from applying the newest one; None where it names nothing."""


class GitOpsAgent(Protocol):
    def report(self, reader: Reader) -> AgentReport:
        """What it says now. `ClusterError` if it cannot be asked."""


@dataclass(frozen=True)
class ArgoCd:
    """One Application."""

    name: str
    namespace: str = "argocd"

    def report(self, reader: Reader) -> AgentReport:
        found = reader.get(APPLICATIONS, self.namespace, self.name)
        title = f"Argo CD's Application {self.namespace}/{self.name}"
        if found is None:
            return AgentReport(None, None, f"{title} does not exist")
        status = _mapping(found.get("status"))
        sync, operation = _mapping(status.get("sync")), _mapping(status.get("operationState"))
        done = _mapping(operation.get("syncResult")).get("revision")
        applied = done if operation.get("phase") == "Succeeded" else None
        if sync.get("status") == "Synced":
            applied = sync.get("revision") or applied
        troubles = [
            f"{c.get('type')}: {c.get('message')}"
            for c in status.get("conditions") or []
            if str(c.get("type", "")).endswith("Error")
        ]
        if operation.get("phase") in ("Failed", "Error"):
            troubles.append(f"the sync failed: {operation.get('message')}")
        for resource in status.get("resources") or []:
            health = _mapping(resource.get("health"))
            if health.get("status") == "Degraded":
                troubles.append(
                    f"{resource.get('kind')} {resource.get('name')} is degraded: {health.get('message')}"
                )
        if not troubles and sync.get("status") not in ("Synced", None):
            state = _mapping(status.get("health")).get("status")
            running = operation.get("phase") or "none"
            troubles.append(f"{sync['status']}, health {state}, operation {running}")
        return AgentReport(sync.get("revision"), applied, _said(title, troubles))


@dataclass(frozen=True)
class Flux:
    """One Kustomization with the GitRepository that it takes its files from."""

    name: str
    source: str
    namespace: str = "flux-system"

    def report(self, reader: Reader) -> AgentReport:
        found = reader.get(KUSTOMIZATIONS, self.namespace, self.name)
        title = f"Flux's Kustomization {self.namespace}/{self.name}"
        if found is None:
            return AgentReport(None, None, f"{title} does not exist")
        source = reader.get(GIT_REPOSITORIES, self.namespace, self.source)
        troubles = _not_ready(found, "")
        if found.get("spec", {}).get("suspend"):
            troubles.append("it is suspended")
        if source is None:
            troubles.append(f"its GitRepository {self.source} does not exist")
        else:
            troubles += _not_ready(source, f"GitRepository {self.source}: ")
            if source.get("spec", {}).get("suspend"):
                troubles.append(f"GitRepository {self.source} is suspended")
        artifact = _mapping(_mapping((source or {}).get("status")).get("artifact"))
        status = _mapping(found.get("status"))
        return AgentReport(
            _commit(artifact.get("revision") or status.get("lastAttemptedRevision")),
            _commit(status.get("lastAppliedRevision")),
            _said(title, troubles),
        )


@dataclass(frozen=True)
class SyncWebhook:
    """The agent's own webhook: Argo CD's `/api/webhook`, or the path of a Flux Receiver.

    It is told what a Git host would tell it. With a secret the body is signed as both of them check it (HMAC-SHA256 under
    `X-Hub-Signature-256` and `X-Signature`).
    """

    url: str
    repository: str
    """The GitOps repository's address as the agent's objects name it: Argo CD looks for its Applications by it."""
    branch: str
    secret: str | None = None

    def ask(self, commit: str) -> None:
        """`ClusterError` if it does not take the request; agents look by themselves as well, only later."""
        body = json.dumps(
            {
                "ref": f"refs/heads/{self.branch}",
                "after": commit,
                "repository": {
                    "html_url": _web_address(self.repository),
                    "clone_url": self.repository,
                    "ssh_url": self.repository,
                    "default_branch": self.branch,
                },
                "commits": [{"id": commit, "added": [], "modified": [], "removed": []}],
            }
        ).encode()
        headers = {"Content-Type": "application/json", "X-GitHub-Event": "push"}
        if self.secret is not None:
            signature = "sha256=" + hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
            headers |= {"X-Hub-Signature-256": signature, "X-Signature": signature}
        try:
            with httpx.Client(timeout=_WEBHOOK_SECONDS) as client:
                client.post(self.url, content=body, headers=headers).raise_for_status()
        except httpx.HTTPError as error:
            raise ClusterError(
                f"the agent's webhook did not take the request: {error}",
                hint="check LOCKGATE_SYNC_WEBHOOK and its secret; until then a sync waits for the agent's interval",
            ) from error


def _web_address(repository: str) -> str:
    """Argo CD compares host and path of this with every form that its Applications may name the repository in."""
    rest = repository.partition("://")[2]
    host, _, path = rest.partition("/") if rest else repository.partition(":")
    return f"https://{host.rpartition('@')[2].partition(':')[0]}/{path.removesuffix('.git')}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _said(title: str, troubles: list[str]) -> str | None:
    return f"{title}: {'; '.join(troubles)}" if troubles else None


def _commit(revision: Any) -> str | None:
    """Of Flux' `branch@sha1:<commit>`."""
    return str(revision).rpartition(":")[2] if revision else None


def _not_ready(item: Mapping[str, Any], prefix: str) -> list[str]:
    """Why a Flux object is not ready; also where its controller has not looked at it."""
    status = _mapping(item.get("status"))
    if status.get("observedGeneration", -1) != item["metadata"].get("generation"):
        return [f"{prefix}its controller has not looked at it"]
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Ready":
            if condition.get("status") == "True":
                return []
            return [f"{prefix}{condition.get('reason')}: {condition.get('message')}"]
    return [f"{prefix}it does not say whether it is ready"]
