"""What a payload hints at: which repository has which new commit or image. Read strictly, in the senders' public formats;
of everything that is not needed nothing is looked at."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lockgate.domain.base import Frozen
from lockgate.domain.webhooks.authenticity import Headers, Sender, timestamp

MAX_HINTS = 64
"""Of one delivery: a registry sends its events in batches."""

_ZERO = re.compile(r"0+")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
"""Names of branches and tags that a track can follow; Git allows others, which are of no interest."""

Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*$", max_length=255)
]
Sha = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
ImageDigest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Ref = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/+-]*$", max_length=200)]


class Hint(Frozen):
    """Something may be new: nothing more is taken from a payload, and this only to choose among the tracked models."""

    sender: Sender
    name: Name
    """Repository, with a registry's or host's name nowhere in it; for `generic` the tracked model."""
    revision: Annotated[str, Field(pattern=r"^[a-z0-9:]+$", max_length=80)]
    """Commit or image digest, or for want of one the time that was signed."""
    branch: Ref | None = None
    tag: Ref | None = None


def read_hints(sender: Sender, headers: Headers, payload: Any) -> tuple[Hint, ...]:
    """The hints in a payload; none where the event is of no interest. Raises `ValueError` for what is not in the sender's
    format."""
    if not isinstance(payload, dict):
        raise ValueError("a payload is a JSON object")
    hints = _READERS[sender](headers, payload)
    return tuple(dict.fromkeys(hints))[:MAX_HINTS]


class _Part(BaseModel):
    """A part of a payload: fields that are not named here are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Named(_Part):
    full_name: Name


class _HubEvent(_Part):
    action: str
    scope: str


class _HubRepo(_Part):
    type: str
    name: Name
    headSha: Sha | None = None


class _HubRef(_Part):
    ref: str
    newSha: Sha | None = None


class _Hub(_Part):
    event: _HubEvent
    repo: _HubRepo
    updatedRefs: list[_HubRef] = []


def _hub(headers: Headers, payload: Any) -> list[Hint]:
    said = _Hub.model_validate(payload)
    content = said.event.scope.split(".")[:2] == ["repo", "content"]
    if said.repo.type != "model" or not content or said.event.action == "delete":
        return []
    refs = said.updatedRefs[:MAX_HINTS]
    return [hint for r in refs for hint in _of_ref(Sender.HUB, said.repo.name, r.newSha, r.ref)]


class _Push(_Part):
    """GitHub and Gitea."""

    ref: str
    after: Sha
    repository: _Named


class _Base(_Part):
    ref: str


class _PullRequest(_Part):
    merged: bool
    merge_commit_sha: Sha | None = None
    base: _Base


class _PullRequestEvent(_Part):
    """GitHub and Gitea."""

    action: str
    pull_request: _PullRequest
    repository: _Named


def _forge(sender: Sender, event: str, payload: Any) -> list[Hint]:
    if event == "push":
        push = _Push.model_validate(payload)
        return _of_ref(sender, push.repository.full_name, push.after, push.ref)
    if event == "pull_request":
        said = _PullRequestEvent.model_validate(payload)
        request = said.pull_request
        if said.action != "closed" or not request.merged:
            return []
        branch = f"refs/heads/{request.base.ref}"
        return _of_ref(sender, said.repository.full_name, request.merge_commit_sha, branch)
    return []


class _GitlabProject(_Part):
    path_with_namespace: Name


class _GitlabPush(_Part):
    ref: str
    after: Sha
    project: _GitlabProject


class _GitlabCommit(_Part):
    id: Sha


class _GitlabMerge(_Part):
    action: str | None = None
    target_branch: str
    merge_commit_sha: Sha | None = None
    last_commit: _GitlabCommit | None = None


class _GitlabMergeEvent(_Part):
    project: _GitlabProject
    object_attributes: _GitlabMerge


def _gitlab(headers: Headers, payload: Any) -> list[Hint]:
    kind = payload.get("object_kind")
    if kind in ("push", "tag_push"):
        push = _GitlabPush.model_validate(payload)
        return _of_ref(Sender.GITLAB, push.project.path_with_namespace, push.after, push.ref)
    if kind == "merge_request":
        said = _GitlabMergeEvent.model_validate(payload)
        merge = said.object_attributes
        # A merge that only moved the branch forward has no commit of its own.
        last = merge.last_commit.id if merge.last_commit is not None else None
        commit = merge.merge_commit_sha or last
        if merge.action != "merge":
            return []
        branch = f"refs/heads/{merge.target_branch}"
        return _of_ref(Sender.GITLAB, said.project.path_with_namespace, commit, branch)
    return []


class _Target(_Part):
    repository: Name
    digest: ImageDigest
    tag: str


def _distribution(headers: Headers, payload: Any) -> list[Hint]:
    events = payload.get("events")
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError("a notification has a list of events")
    pushed = (event.get("target") for event in events if event.get("action") == "push")
    # Blobs are pushed too, and manifests without a tag: nobody follows them.
    tagged = [t for t in pushed if isinstance(t, dict) and t.get("tag")]
    return [
        hint
        for t in map(_Target.model_validate, tagged[:MAX_HINTS])
        for hint in _of_ref(Sender.DISTRIBUTION, t.repository, t.digest, f"refs/tags/{t.tag}")
    ]


class _HarborResource(_Part):
    digest: ImageDigest
    tag: str | None = None


class _HarborRepository(_Part):
    repo_full_name: Name


class _HarborData(_Part):
    resources: list[_HarborResource]
    repository: _HarborRepository


class _Harbor(_Part):
    type: str
    event_data: _HarborData


def _harbor(headers: Headers, payload: Any) -> list[Hint]:
    if payload.get("type") not in ("PUSH_ARTIFACT", "pushImage"):
        return []
    data = _Harbor.model_validate(payload).event_data
    name = data.repository.repo_full_name
    return [
        hint
        for pushed in data.resources[:MAX_HINTS]
        for hint in _of_ref(Sender.HARBOR, name, pushed.digest, f"refs/tags/{pushed.tag or ''}")
    ]


class _Generic(_Part):
    model: Name
    commit: Sha | ImageDigest | None = None


def _generic(headers: Headers, payload: Any) -> list[Hint]:
    said = _Generic.model_validate(payload)
    # Signed, so a replay has the same one.
    stamp = timestamp(headers)
    return [Hint(sender=Sender.GENERIC, name=said.model, revision=said.commit or f"at:{stamp}")]


def _of_ref(sender: Sender, name: str, revision: str | None, ref: str) -> list[Hint]:
    """The hint at a branch or tag. None for any other ref, for one that was deleted, and for a name that no track follows."""
    if revision is None or _ZERO.fullmatch(revision):
        return []
    for prefix, field in (("refs/heads/", "branch"), ("refs/tags/", "tag")):
        short = ref.removeprefix(prefix)
        if ref != short and _REF.fullmatch(short):
            facts = {"sender": sender, "name": name, "revision": revision, field: short}
            return [Hint.model_validate(facts)]
    return []


def _event(headers: Headers, *names: str) -> str:
    for name in names:
        for value in headers.get(name, ()):
            return value.decode("latin-1")
    return ""


_READERS = {
    Sender.HUB: _hub,
    Sender.GITHUB: lambda h, p: _forge(Sender.GITHUB, _event(h, "x-github-event"), p),
    Sender.GITLAB: _gitlab,
    Sender.GITEA: lambda h, p: _forge(
        Sender.GITEA, _event(h, "x-gitea-event", "x-forgejo-event"), p
    ),
    Sender.DISTRIBUTION: _distribution,
    Sender.HARBOR: _harbor,
    Sender.GENERIC: _generic,
}
