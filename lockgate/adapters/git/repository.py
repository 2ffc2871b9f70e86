"""Reading states from the GitOps repository and writing transitions to it.

A writer keeps a clone of its own. A transition is built on the newest state, committed on top and pushed without force; the
remote's refusal of a push that is not a fast-forward is the lock between writers on any number of machines: who loses
fetches, builds again on what is there now, and tries again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TypeVar

import yaml
from pydantic import ValidationError

from lockgate.adapters.git.checkout import Checkout, LocalDamage
from lockgate.adapters.git.process import LOCKGATE, Author
from lockgate.domain import gitops
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition, Wait
from lockgate.domain.spec import ReleaseSpec
from lockgate.errors import GitError, PushRejected, UsageError

Build = Callable[[ReleaseState], Transition | Wait | None]
"""Decides on the newest state. Called again after a lost race: it must not have effects."""
Render = Callable[[ReleaseState, Path], Mapping[str, str]]
"""All manifests of a state: path from the repository's root → YAML. The directory is that root at the newest commit."""
Files = Mapping[str, str | bytes]

T = TypeVar("T")

_FIELD, _RECORD = "\x1f", "\x1e"


@dataclass(frozen=True)
class CommitResult:
    """What became of one `commit_transition`."""

    committed: bool
    """False where nothing had to change."""
    commit: str
    """Newest commit of the branch, 40 hex digits: the transition's own if `committed`."""
    state: ReleaseState
    """The state in that commit."""
    transition: Transition | None
    wait: Wait | None
    attempts: int
    seconds: float


class GitOpsRepository:
    """One branch of one GitOps repository, through a clone in `checkout`.

    Any number of processes and threads may share a checkout (they queue) or have one each (they race, and nothing is lost).
    Errors: `GitError` when the remote cannot be read or written within `timeout` seconds a command, `PushRejected` when
    others were always faster for `retry_seconds`.
    """

    def __init__(
        self,
        remote: str,
        checkout: Path,
        branch: str = "main",
        *,
        author: Author = LOCKGATE,
        ssh_signing_key: Path | None = None,
        timeout: float = 30.0,
        retry_seconds: float = 120.0,
        policy_branch: str | None = None,
    ) -> None:
        self.branch = branch
        self._policy_branch = policy_branch or branch
        self._retry_seconds = retry_seconds
        self._checkout = Checkout(
            remote, checkout, author=author, ssh_signing_key=ssh_signing_key, timeout=timeout
        )

    def sync(self) -> str:
        """Fetch; returns the newest commit."""
        with self._checkout.locked():
            self._checkout.collect_garbage()
            return self._fetch()

    def read_state(self, model: str, environment: str) -> ReleaseState:
        """The state as of the last sync or commit; an empty one where nothing was released yet."""
        with self._checkout.locked():
            return self._repaired(lambda: self._read_state(self._head(), model, environment))

    def state_at(self, commit: str, model: str, environment: str) -> ReleaseState:
        """The state that a commit of the history holds."""
        with self._checkout.locked():
            return self._read_state(commit, model, environment)

    def states(
        self, unreadable: Callable[[str, GitError], None] | None = None
    ) -> tuple[ReleaseState, ...]:
        """Every model's state in every environment, as of the last sync or commit, in order of path.

        A state that cannot be read is told to `unreadable` (path, error) and left out, so that it stands in no other
        model's way; without `unreadable` it raises.
        """

        def read() -> tuple[ReleaseState, ...]:
            head, states = self._head(), []
            for path in self._checkout.list(head, str(gitops.MODELS)):
                names = gitops.model_of_state_path(path)
                if names is None:
                    continue
                try:
                    states.append(self._read_state(head, *names))
                except LocalDamage:
                    raise
                except GitError as error:
                    if unreadable is None:
                        raise
                    unreadable(path, error)
            return tuple(states)

        with self._checkout.locked():
            return self._repaired(read)

    def read_text(self, path: str | PurePosixPath) -> str | None:
        """A file's text as of the last sync or commit; None if it is not there."""
        with self._checkout.locked():
            return self._repaired(lambda: self._checkout.read(self._head(), str(path)))

    def read_policy(self) -> Policy:
        """`policy.yaml` of the policy branch. Raises `GitError` where there is none: no policy allows nothing."""

        def read() -> str | None:
            self._head()
            commit = self._checkout.fetched(self._policy_branch)
            return self._checkout.read(commit, str(gitops.POLICY)) if commit else None

        with self._checkout.locked():
            text = self._repaired(read)
        if text is None:
            raise GitError(
                f"branch {self._policy_branch} of {self._checkout.shown_remote} has no policy.yaml",
                hint="lay the repository down with `lockgate init`",
            )
        return gitops.load_policy(text)

    def read_spec(self, path: str | PurePosixPath) -> ReleaseSpec:
        """A release spec in the repository. Raises `UsageError` where there is none or it cannot be used."""
        text = self.read_text(path)
        if text is None:
            raise UsageError(f"{path} is not in {self._checkout.shown_remote}")
        try:
            return ReleaseSpec.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError) as error:
            raise UsageError(f"{path} is not a release spec: {error}") from error

    def history(self, model: str, environment: str, limit: int | None = None) -> list[HistoryEntry]:
        """The commits that touched a model in an environment as of the last sync or commit, newest first."""
        directory = str(gitops.environment_directory(model, environment))
        form = _FIELD.join(("%H", "%ct", "%an <%ae>", "%B")) + _RECORD

        def read() -> list[HistoryEntry]:
            arguments = ["log", f"--format={form}", "--no-show-signature"]
            if limit is not None:
                arguments.append(f"--max-count={limit}")
            text = self._checkout.local(*arguments, self._head(), "--", directory)
            return [_entry(record) for record in text.split(_RECORD) if record.strip()]

        with self._checkout.locked():
            return self._repaired(read)

    def commit_transition(
        self,
        model: str,
        environment: str,
        build: Build,
        render: Render,
        *,
        extra_files: Files | Callable[[Transition], Files] | None = None,
    ) -> CommitResult:
        """Bring one transition into the remote's branch, or find that there is none to bring.

        `build` decides on the newest state; the state that it answers must be the next generation. State, manifests and
        `extra_files` (paths from the repository's root) are one commit; manifests that are not rendered any more are removed
        by it. The same content makes no commit. Safe to repeat after any failure: a push whose answer was lost is recognised.
        """
        began = time.monotonic()
        attempts = 0
        with self._checkout.locked():
            while True:
                attempts += 1
                result = self._repaired(
                    lambda: self._attempt(model, environment, build, render, extra_files)
                )
                seconds = time.monotonic() - began
                if result is not None:
                    return replace(result, attempts=attempts, seconds=seconds)
                if seconds > self._retry_seconds:
                    raise PushRejected(
                        f"{self._checkout.shown_remote}: {attempts} pushes to {self.branch} were "
                        f"overtaken by others within {seconds:.0f} s",
                        hint="try again; nothing was changed",
                    )
                time.sleep(random.uniform(0, min(0.5, 0.02 * 2 ** min(attempts, 8))))

    def preview(
        self, model: str, environment: str, build: Build, render: Render
    ) -> Mapping[str, str] | None:
        """The manifests that `commit_transition` would commit, by path from the repository's root; None where there is no
        transition to bring. Nothing is committed."""

        def look() -> Mapping[str, str] | None:
            head = self._fetch()
            answer = build(self._read_state(head, model, environment))
            if not isinstance(answer, Transition):
                return None
            self._checkout.reset(head)
            return render(answer.state, self._checkout.directory)

        with self._checkout.locked():
            return self._repaired(look)

    def look_at_files(self, look: Callable[[Path], T]) -> T:
        """What `look` makes of the newest files, given the checkout's directory; nobody changes them meanwhile."""

        def at_head() -> T:
            self._checkout.reset(self._fetch())
            return look(self._checkout.directory)

        with self._checkout.locked():
            return self._repaired(at_head)

    def _attempt(
        self,
        model: str,
        environment: str,
        build: Build,
        render: Render,
        extra_files: Files | Callable[[Transition], Files] | None,
    ) -> CommitResult | None:
        """One fetch, build, commit and push; None if another writer was faster."""
        head = self._fetch()
        state = self._read_state(head, model, environment)
        answer = build(state)
        if not isinstance(answer, Transition):
            return CommitResult(False, head, state, None, answer, 1, 0.0)
        _check_follows(state, answer.state)
        checkout = self._checkout
        checkout.reset(head)
        manifests = render(answer.state, checkout.directory)
        directory = gitops.environment_directory(model, environment)
        checkout.replace_directory(gitops.manifests_directory(model, environment), manifests)
        files = extra_files(answer) if callable(extra_files) else extra_files or {}
        checkout.write(
            {str(gitops.state_path(model, environment)): gitops.dump_state(answer.state)}
        )
        checkout.write(files)
        commit = checkout.commit(head, [str(directory), *files], gitops.commit_message(answer))
        if commit is None:
            return CommitResult(False, head, state, answer, None, 1, 0.0)
        if not checkout.push(commit, self.branch):
            return None
        return CommitResult(True, commit, answer.state, answer, None, 1, 0.0)

    def _fetch(self) -> str:
        branches = {self.branch, self._policy_branch}
        self._checkout.fetch(sorted(branches))
        return self._head()

    def _head(self) -> str:
        head = self._checkout.fetched(self.branch)
        if head is None:
            self._checkout.fetch(sorted({self.branch, self._policy_branch}))
            head = self._checkout.fetched(self.branch)
        if head is None:
            raise GitError(
                f"{self._checkout.shown_remote} has no branch {self.branch}",
                hint="lay the repository down with `lockgate init`",
            )
        return head

    def _read_state(self, head: str, model: str, environment: str) -> ReleaseState:
        path = str(gitops.state_path(model, environment))
        text = self._checkout.read(head, path)
        if text is None:
            return ReleaseState(model=model, environment=environment)
        state = gitops.load_state(text, path)
        if (state.model, state.environment) != (model, environment):
            raise GitError(f"{path} is the state of {state.model}/{state.environment}")
        return state

    def _repaired(self, read: Callable[[], T]) -> T:
        """`read`, after a damaged clone was made anew if need be."""
        try:
            return read()
        except LocalDamage:
            self._checkout.make_anew()
            self._fetch()
            return read()


def _check_follows(before: ReleaseState, after: ReleaseState) -> None:
    """A transition that was made from another state than the one it would be committed on is a fault of the caller."""
    if (after.model, after.environment) != (before.model, before.environment):
        raise GitError(
            f"a transition of {after.model}/{after.environment} for {before.model}/{before.environment}"
        )
    if after.generation != before.generation + 1:
        raise GitError(
            f"generation {after.generation} of {after.model}/{after.environment} does not follow "
            f"{before.generation}",
            hint="build the transition from the state that is handed in",
        )


def _entry(record: str) -> HistoryEntry:
    commit, seconds, author, text = record.strip("\n").split(_FIELD, 3)
    message = gitops.parse_message(text)
    at = datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
    return HistoryEntry(
        commit=commit,
        at=at,
        author=author,
        subject=message.subject,
        body=message.body,
        trailers=message.trailers,
    )
