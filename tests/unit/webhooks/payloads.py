"""One delivery of each sender, written after its public documentation, with the secret in the place that it uses."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lockgate.domain.tracks import Track
from lockgate.domain.webhooks import Sender
from lockgate.domain.webhooks.authenticity import sign

SECRET = "a-secret-of-thirty-two-characters"
NOW = 1_790_000_000
COMMIT = "b1d5781111d84f7b3fe45a0852e59758cd7a87e5"
OTHER = "0c4d2b6e9a8f7c5d3e1b0a9f8e7d6c5b4a392817"
ZERO = "0" * 40
IMAGE = "sha256:" + "5e" * 32


@dataclass(frozen=True)
class Sent:
    """A request as a sender makes it."""

    sender: Sender
    payload: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return json.dumps(self.payload).encode()

    def signed(self, secret: str = SECRET, now: int = NOW) -> dict[str, str]:
        """Its headers, with what proves the secret."""
        key, body = secret.encode(), self.body
        digest = hmac.new(key, body, hashlib.sha256).hexdigest()
        proof = {
            Sender.HUB: {"X-Webhook-Secret": secret},
            Sender.GITHUB: {"X-Hub-Signature-256": f"sha256={digest}"},
            Sender.GITLAB: {"X-Gitlab-Token": secret},
            Sender.GITEA: {"X-Gitea-Signature": digest},
            Sender.DISTRIBUTION: {"Authorization": f"Bearer {secret}"},
            Sender.HARBOR: {"Authorization": secret},
            Sender.GENERIC: {
                "X-Lockgate-Timestamp": str(now),
                "X-Lockgate-Signature": sign(key, now, body),
            },
        }[self.sender]
        return {"Content-Type": "application/json", **self.headers, **proof}


def hub(commit: str | None = COMMIT, ref: str = "refs/heads/main", **changes: Any) -> Sent:
    payload = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {
            "type": "model", "name": "org/name", "id": "621ffdc036468d709f17434d",
            "private": False, "headSha": commit or OTHER, "tags": ["safetensors"],
            "url": {"web": "https://hub.example/org/name", "api": "https://hub.example/api/models/org/name"},
            "owner": {"id": "628b753283ef59b5be89e937"},
        },
        "updatedRefs": [{"ref": ref, "oldSha": OTHER, "newSha": commit}],
        "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
    }  # fmt: skip
    return Sent(Sender.HUB, {**payload, **changes})


def github_push(after: str = COMMIT, ref: str = "refs/heads/main") -> Sent:
    payload = {
        "ref": ref, "before": OTHER, "after": after, "created": False, "deleted": after == ZERO,
        "forced": False, "compare": "https://forge.example/org/specs/compare/0c4d...b1d5",
        "commits": [{"id": after, "message": "New spec", "modified": ["specs/m.yaml"]}],
        "repository": {"id": 1296269, "full_name": "org/specs", "default_branch": "main"},
        "pusher": {"name": "somebody"}, "sender": {"login": "somebody", "id": 1},
    }  # fmt: skip
    headers = {
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    }
    return Sent(Sender.GITHUB, payload, headers)


def github_merge(merged: bool = True) -> Sent:
    payload = {
        "action": "closed", "number": 7,
        "pull_request": {
            "id": 279147437, "state": "closed", "merged": merged,
            "merge_commit_sha": COMMIT, "base": {"ref": "main", "sha": OTHER},
            "head": {"ref": "new-spec", "sha": OTHER},
        },
        "repository": {"id": 1296269, "full_name": "org/specs"}, "sender": {"login": "somebody"},
    }  # fmt: skip
    return Sent(Sender.GITHUB, payload, {"X-GitHub-Event": "pull_request"})


def gitlab_push() -> Sent:
    payload = {
        "object_kind": "push", "event_name": "push", "before": OTHER, "after": COMMIT,
        "ref": "refs/heads/main", "checkout_sha": COMMIT, "user_username": "somebody",
        "project_id": 15,
        "project": {"id": 15, "name": "specs", "path_with_namespace": "org/specs"},
        "commits": [{"id": COMMIT, "message": "New spec"}], "total_commits_count": 1,
    }  # fmt: skip
    return Sent(Sender.GITLAB, payload, {"X-Gitlab-Event": "Push Hook"})


def gitlab_merge(action: str = "merge", commit: str | None = COMMIT) -> Sent:
    payload = {
        "object_kind": "merge_request", "event_type": "merge_request",
        "project": {"id": 1, "name": "specs", "path_with_namespace": "org/specs"},
        "object_attributes": {
            "id": 99, "iid": 1, "target_branch": "main", "source_branch": "new-spec",
            "state": "merged", "action": action, "merge_commit_sha": commit,
            "last_commit": {"id": OTHER, "message": "New spec"},
        },
    }  # fmt: skip
    return Sent(Sender.GITLAB, payload, {"X-Gitlab-Event": "Merge Request Hook"})


def gitea_push() -> Sent:
    payload = {
        "ref": "refs/heads/main", "before": OTHER, "after": COMMIT,
        "commits": [{"id": COMMIT, "message": "New spec"}], "total_commits": 1,
        "repository": {"id": 140, "full_name": "org/specs"}, "pusher": {"login": "somebody"},
    }  # fmt: skip
    return Sent(Sender.GITEA, payload, {"X-Gitea-Event": "push"})


def gitea_merge() -> Sent:
    payload = {
        "action": "closed", "number": 3,
        "pull_request": {
            "id": 3, "state": "closed", "merged": True, "merge_commit_sha": COMMIT,
            "base": {"label": "main", "ref": "main", "sha": OTHER},
        },
        "repository": {"id": 140, "full_name": "org/specs"},
    }  # fmt: skip
    return Sent(Sender.GITEA, payload, {"X-Gitea-Event": "pull_request"})


def distribution(tag: str = "v1") -> Sent:
    target = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 708,
        "digest": IMAGE, "length": 708, "repository": "ml/models/m",
        "url": f"https://registry.example/v2/ml/models/m/manifests/{IMAGE}",
    }  # fmt: skip
    layer = {**target, "mediaType": "application/octet-stream"}
    origin = {"request": {"host": "registry.example"}, "actor": {}, "source": {"addr": "a:5000"}}
    payload = {
        "events": [
            {"id": "320678d8", "action": "push", "target": layer, **origin},
            {"id": "320678d9", "action": "push", "target": {**target, "tag": tag}, **origin},
            {"id": "320678da", "action": "pull", "target": {**target, "tag": tag}, **origin},
        ]
    }
    kind = "application/vnd.docker.distribution.events.v2+json"
    return Sent(Sender.DISTRIBUTION, payload, {"Content-Type": kind})


def harbor() -> Sent:
    payload = {
        "type": "PUSH_ARTIFACT", "occur_at": 1680501893, "operator": "robot$ci",
        "event_data": {
            "resources": [
                {"digest": IMAGE, "tag": "v1", "resource_url": "harbor.example/ml/models/m:v1"}
            ],
            "repository": {
                "date_created": 1680501893, "name": "models/m", "namespace": "ml",
                "repo_full_name": "ml/models/m", "repo_type": "private",
            },
        },
    }  # fmt: skip
    return Sent(Sender.HARBOR, payload)


def generic(model: str = "hub-model", commit: str | None = COMMIT) -> Sent:
    return Sent(Sender.GENERIC, {"model": model, **({"commit": commit} if commit else {})})


EVERY: tuple[Callable[[], Sent], ...] = (
    hub, github_push, github_merge, gitlab_push, gitlab_merge, gitea_push, gitea_merge,
    distribution, harbor, generic,
)  # fmt: skip


def tracks() -> tuple[Track, ...]:
    """One model at the Hub, whose spec lies at three forges, and one in a registry."""
    spec = {
        "serving": {"served_model_name": "m"},
        "evaluation": {"tasks": [{"name": "t", "metric": "acc,none", "margin": 0.1, "floor": 0.1}]},
        "benchmark": {"profiles": [{"name": "chat", "requests": 8}]},
    }
    environments = [{"name": "local"}]
    forges = ("github", "gitlab", "gitea")
    return (
        Track.model_validate(
            {
                "model": "hub-model", "source": "hf://org/name", "spec": spec,
                "environments": environments,
                "triggers": [{"sender": forge, "repository": "org/specs"} for forge in forges],
            }
        ),
        Track.model_validate(
            {
                "model": "oci-model", "source": "oci://registry.example/ml/models/m",
                "follow": {"tag": "v*"}, "spec": spec, "environments": environments,
            }
        ),
    )  # fmt: skip
