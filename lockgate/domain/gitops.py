"""The GitOps repository's language: where things lie, how state is written as YAML, what a commit message says.

Pure: text in, types out. Reading and writing the repository itself is `lockgate.adapters.git`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml
from pydantic import Field, ValidationError

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition
from lockgate.domain.tracks import Track
from lockgate.errors import GitError, UsageError

MODELS = PurePosixPath("models")
POLICY = PurePosixPath("policy.yaml")
APPROVERS = PurePosixPath("approvers")

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_TRAILER = re.compile(r"([A-Za-z][A-Za-z0-9-]*): (.*)")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def environment_directory(model: str, environment: str) -> PurePosixPath:
    """`models/<model>/<env>`: everything of one model in one environment. Raises `UsageError` for a name that is no DNS
    label, so that no name can leave the directory."""
    for name in (model, environment):
        if not _LABEL.fullmatch(name):
            raise UsageError(f"{name!r} must be a DNS label of at most 40 characters (a-z, 0-9, -)")
    return MODELS / model / environment


def state_path(model: str, environment: str) -> PurePosixPath:
    """Where the `ReleaseState` is."""
    return environment_directory(model, environment) / "release.yaml"


def manifests_directory(model: str, environment: str) -> PurePosixPath:
    """Where the fully rendered manifests are, which the agents apply."""
    return environment_directory(model, environment) / "manifests"


def verdict_path(model: str, environment: str, report: Digest) -> PurePosixPath:
    """Where the whole report of a verdict is (JSON)."""
    return environment_directory(model, environment) / "verdicts" / f"{report.hex}.json"


def approvals_directory(model: str, environment: str, request: Digest) -> PurePosixPath:
    """Where the signed decisions on one request are, one file a signer."""
    return environment_directory(model, environment) / "approvals" / request.hex


def decision_path(model: str, environment: str, request: Digest, signer: str) -> PurePosixPath:
    """Where one signer's decision is. Raises `UsageError` for a name that is no file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}", signer):
        raise UsageError(f"{signer!r} is no name of an approver")
    return approvals_directory(model, environment, request) / f"{signer}.json"


def pull_record_path(model: str, environment: str, request: Digest) -> PurePosixPath:
    """Where the record of a request's promotion pull request is."""
    return environment_directory(model, environment) / "pulls" / f"{request.hex}.json"


def request_path(model: str, environment: str, request: Digest) -> PurePosixPath:
    """Where a promotion pull request puts its request, on the protected branch."""
    return PurePosixPath("requests", model, environment, f"{request.hex}.json")


def model_of_state_path(path: str) -> tuple[str, str] | None:
    """`(model, environment)` of a state's path, None for any other path."""
    parts = PurePosixPath(path).parts
    if len(parts) != 4 or parts[0] != MODELS.name or parts[3] != "release.yaml":
        return None
    return (parts[1], parts[2]) if all(map(_LABEL.fullmatch, parts[1:3])) else None


def track_path(model: str) -> PurePosixPath:
    """Where a tracked model's `Track` is. Raises `UsageError` for a name that is no DNS label."""
    if not _LABEL.fullmatch(model):
        raise UsageError(f"{model!r} must be a DNS label of at most 40 characters (a-z, 0-9, -)")
    return MODELS / model / "track.yaml"


def model_of_track_path(path: str) -> str | None:
    """The model of a track's path, None for any other path."""
    parts = PurePosixPath(path).parts
    if len(parts) != 3 or parts[0] != MODELS.name or parts[2] != "track.yaml":
        return None
    return parts[1] if _LABEL.fullmatch(parts[1]) else None


def dump_yaml(data: Any) -> str:
    """YAML of plain data, keys in the order given, the same text for the same data. Texts of several lines are written as
    blocks."""
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=100,
    )


def load_yaml(text: str, what: str) -> Any:
    """The one document in `text`; raises `GitError` naming `what` it should have been."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise GitError(f"{what} is not YAML: {error}") from error


def dump_state(state: ReleaseState) -> str:
    """`release.yaml`. Defaults are written too: what is read back does not depend on the version that reads it."""
    return dump_yaml(state.to_data())


def load_state(text: str, what: str = "release.yaml") -> ReleaseState:
    """Inverse of `dump_state`; raises `GitError` for anything that is not a consistent state."""
    try:
        return ReleaseState.model_validate(load_yaml(text, what))
    except ValidationError as error:
        raise GitError(
            f"{what} is not a consistent release state: {_first(error)}",
            hint="it is written by Lockgate only: revert the commit that changed it by hand",
        ) from error


def load_track(text: str, what: str = "track.yaml") -> Track:
    """Raises `GitError` for anything that is not a track, or that lies at another model's place."""
    try:
        track = Track.model_validate(load_yaml(text, what))
    except ValidationError as error:
        raise GitError(f"{what} is not a track: {_first(error)}") from error
    if model_of_track_path(what) not in (None, track.model):
        raise GitError(f"{what} is the track of {track.model}")
    return track


def load_policy(text: str, what: str = "policy.yaml") -> Policy:
    """Raises `GitError` for anything that is not a policy: a policy that cannot be read allows nothing."""
    try:
        return Policy.model_validate(load_yaml(text, what))
    except ValidationError as error:
        raise GitError(f"{what} is not a policy: {_first(error)}") from error


def commit_message(transition: Transition) -> str:
    """Subject, the reason as body, and the trailers as last paragraph."""
    return format_message(transition.subject, transition.reason, transition.trailers)


def format_message(subject: str, body: str, trailers: Mapping[str, str]) -> str:
    """A commit message that `parse_message` reads back. Words of others stay in the body: only the last paragraph is read
    as trailers, and a trailer's value is one line."""
    for key, value in trailers.items():
        if not _TRAILER.fullmatch(f"{key}: {value}"):
            raise ValueError(f"not a trailer: {key!r}: {value!r}")
    paragraphs = [" ".join(subject.split())]
    text = "\n".join(line.rstrip() for line in body.strip().splitlines())
    if text:
        paragraphs.append(text)
    if trailers:
        paragraphs.append("\n".join(f"{key}: {value}" for key, value in trailers.items()))
    return "\n\n".join(paragraphs) + "\n"


class Message(Frozen):
    """A parsed commit message."""

    subject: str
    body: str = ""
    trailers: dict[str, str] = Field(default_factory=dict)


def parse_message(text: str) -> Message:
    """Subject, body and trailers of any commit message. A last paragraph with one line that is no trailer, or with a key
    twice, is body: no line may hide among the trailers."""
    paragraphs = re.split(r"\n{2,}", text.strip("\n"))
    subject = " ".join(paragraphs[0].split())
    rest = paragraphs[1:]
    trailers: dict[str, str] = {}
    if rest:
        matches = [_TRAILER.fullmatch(line) for line in rest[-1].splitlines()]
        found = [(m[1], m[2]) for m in matches if m is not None]
        if len(found) == len(matches) == len(dict(found)):
            trailers = dict(found)
            rest = rest[:-1]
    return Message(subject=subject, body="\n\n".join(rest), trailers=trailers)


class HistoryEntry(Frozen):
    """One commit that touched a model in an environment."""

    commit: str
    """40 hex digits."""
    at: str
    """RFC 3339 time of the commit, UTC."""
    author: str
    subject: str
    body: str
    trailers: dict[str, str]

    @property
    def release(self) -> str | None:
        return self.trailers.get("Lockgate-Release")

    @property
    def phase(self) -> str | None:
        return self.trailers.get("Lockgate-Phase")

    @property
    def transition(self) -> str | None:
        """The kind of transition; None for a commit that Lockgate did not make."""
        return self.trailers.get("Lockgate-Transition")

    @property
    def verdict(self) -> str | None:
        """`pass sha256:…`: the word and the report's digest."""
        return self.trailers.get("Verdict")

    @property
    def approved_by(self) -> str | None:
        return self.trailers.get("Approved-by")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])


class _Dumper(_SafeDumper):
    """Never aliases (a state is data, not a graph), and blocks for texts of several lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: Any, value: str) -> Any:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=style)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_multi_representer(str, _represent_str)  # Digest and the StrEnums
