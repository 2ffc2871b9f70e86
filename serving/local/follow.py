"""Follows the GitOps remote: what its branch points at, and the manifests of this environment in that commit.

The commits are kept in a bare mirror, so that the cluster knows what to do when the remote is away.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lockgate.domain.gitops import MODELS, load_state
from lockgate.domain.release_state import ReleaseState
from lockgate.errors import GitError
from serving.local.config import AgentConfig

_TIMEOUT_SECONDS = 30
_REF = "refs/lockgate/head"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PASSED = ("PATH", "HOME", "SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_ASKPASS")


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model in this environment at one commit."""

    model: str
    state: ReleaseState | None
    objects: tuple[dict[str, Any], ...]


class Follower:
    """Blocking; to be called from one thread at a time."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._mirror = config.mirror

    def fetch(self) -> str:
        """The commit that the branch points at now, after its objects were brought here. `GitError` if that fails."""
        self._init()
        remote, branch = self._config.remote, f"refs/heads/{self._config.branch}"
        listed = self._git("ls-remote", remote, branch).split()
        if not listed:
            raise GitError(f"{remote} has no branch {self._config.branch}")
        commit = listed[0]
        if commit != self.last():
            self._git("fetch", "--quiet", "--no-tags", remote, f"+{branch}:{_REF}")
        return self.last() or commit

    def last(self) -> str | None:
        """The last commit fetched, also by an earlier agent."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", _REF).strip() or None
        except GitError:
            return None

    def contains(self, commit: str, ancestor: str) -> bool:
        """Whether `ancestor` is `commit` or in its history."""
        done = self._run(("merge-base", "--is-ancestor", ancestor, commit))
        return done.returncode == 0

    def read(self, commit: str) -> tuple[list[ModelFiles], dict[str, str]]:
        """All models of this environment in `commit`, and those whose files cannot be read, with the reason."""
        listing = self._git("ls-tree", "-r", "-z", "--name-only", commit, f"{MODELS}/")
        paths: dict[str, list[str]] = {}
        for path in filter(None, listing.split("\0")):
            parts = path.split("/")
            if len(parts) < 4 or parts[2] != self._config.environment:
                continue
            is_manifest = parts[3] == "manifests" and path.endswith((".yaml", ".yml"))
            if is_manifest or parts[3:] == ["release.yaml"]:
                paths.setdefault(parts[1], []).append(path)
        texts = self._texts(commit, [path for files in paths.values() for path in files])
        models, errors = [], {}
        for model, files in sorted(paths.items()):
            try:
                models.append(_parse(model, {path: texts[path] for path in files}))
            except (GitError, yaml.YAMLError, UnicodeDecodeError) as error:
                errors[model] = f"the files of {model} cannot be read: {error}"
        return models, errors

    def _texts(self, commit: str, paths: Sequence[str]) -> dict[str, bytes]:
        """All files in one go: a rollback waits for this."""
        if not paths:
            return {}
        if any("\n" in path for path in paths):
            raise GitError("a file name in the repository contains a line break")
        wanted = "".join(f"{commit}:{path}\n" for path in paths).encode()
        done = self._run(("cat-file", "--batch"), wanted)
        output, position, texts = done.stdout, 0, {}
        for path in paths:
            end = output.find(b"\n", position)
            header = output[position:end].split()
            if done.returncode != 0 or end < 0 or len(header) != 3 or header[1] != b"blob":
                raise GitError(f"{path} cannot be read at {commit}: {done.stderr[-300:]!r}")
            size = int(header[2])
            texts[path] = output[end + 1 : end + 1 + size]
            position = end + 1 + size + 1
        return texts

    def _init(self) -> None:
        if not (self._mirror / "HEAD").exists():
            self._mirror.mkdir(parents=True, exist_ok=True)
            self._git("init", "--bare", "--quiet", str(self._mirror))

    def _git(self, *arguments: str) -> str:
        done = self._run(arguments)
        if done.returncode != 0:
            raise GitError(
                f"git {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()[-500:]}"
            )
        return done.stdout.decode(errors="replace")

    def _run(
        self, arguments: Sequence[str], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        try:
            return subprocess.run(
                ["git", f"--git-dir={self._mirror}", *arguments],
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
                input=stdin,
                env={
                    **environment,
                    "GIT_TERMINAL_PROMPT": "0",
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "LC_ALL": "C",
                },
                cwd=Path("/"),
            )
        except subprocess.TimeoutExpired as error:
            raise GitError(f"git {arguments[0]} did not end within {_TIMEOUT_SECONDS} s") from error
        except OSError as error:
            raise GitError(f"git cannot be run: {error}") from error


def _parse(model: str, texts: Mapping[str, bytes]) -> ModelFiles:
    state, objects = None, []
    for path, text in texts.items():
        if path.endswith("/release.yaml"):
            state = load_state(text.decode(), path)
        else:
            loaded = yaml.load_all(text, Loader=_Loader)
            objects += [item for item in loaded if isinstance(item, dict)]
    return ModelFiles(model, state, tuple(objects))
