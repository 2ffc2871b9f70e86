"""Reading states from the GitOps repository and writing transitions to it.

A writer keeps a clone of its own. A transition is built on the newest state, committed on top and pushed without force; the
remote's refusal of a push that is not a fast-forward is the lock between writers on any number of machines: who loses
fetches, builds again on what is there now, and tries again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lockgate.adapters.git.changes import Build, CommitResult, Decide, Files, Render
from lockgate.adapters.git.checkout import Checkout, LocalDamage
from lockgate.adapters.git.log import LANDED, LOG, Touched, read_entry, read_landed, records
from lockgate.adapters.git.process import LOCKGATE, Author
from lockgate.domain import gitops
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition
from lockgate.errors import GitError, PushRejected

T = TypeVar("T")


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
        signing_key: str | Path | None = None,
        timeout: float = 30.0,
        retry_seconds: float = 120.0,
        policy_branch: str | None = None,
    ) -> None:
        self.branch = branch
        self._policy_branch = policy_branch or branch
        self._retry_seconds = retry_seconds
        self._checkout = Checkout(
            remote, checkout, author=author, signing_key=signing_key, timeout=timeout
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

    def paths(self, directory: str | PurePosixPath) -> list[str]:
        """Paths of all files below a directory, as of the last sync or commit."""
        with self._checkout.locked():
            return self._repaired(lambda: self._checkout.list(self._head(), str(directory)))

    def last_author(self, path: str | PurePosixPath) -> str | None:
        """`Name <address>` of whoever last changed a file, as of the last sync or commit; None if nobody did."""

        def read() -> str | None:
            arguments = ("log", "--max-count=1", "--format=%an <%ae>", "--no-show-signature")
            return self._checkout.local(*arguments, self._head(), "--", str(path)).strip() or None

        with self._checkout.locked():
            return self._repaired(read)

    def read_text(self, path: str | PurePosixPath) -> str | None:
        """A file's text as of the last sync or commit; None if it is not there."""
        with self._checkout.locked():
            return self._repaired(lambda: self._checkout.read(self._head(), str(path)))

    def read_policy(self) -> Policy:
        """`policy.yaml` of the policy branch. Raises `GitError` where there is none: no policy allows nothing."""
        return gitops.load_policy(self._read_protected(gitops.POLICY))

    def read_approvers(self) -> str:
        """`approvers` of the policy branch, as the remote had it at the last sync: never this machine's files. Raises `GitError`
        where there is none."""
        return self._read_protected(gitops.APPROVERS)

    def files(self, directory: str | PurePosixPath, commit: str | None = None) -> dict[str, str]:
        """Text by path of every file below a directory, in a commit or as of the last sync or commit."""

        def read() -> dict[str, str]:
            at = commit or self._head()
            paths = self._checkout.list(at, str(directory))
            return {path: self._checkout.read(at, path) or "" for path in paths}

        with self._checkout.locked():
            return self._repaired(read)

    def text_at(self, commit: str, path: str | PurePosixPath) -> str | None:
        """A file's text in a commit of the history; None if it is not there."""
        with self._checkout.locked():
            return self._checkout.read(commit, str(path))

    def history(self, model: str, environment: str, limit: int | None = None) -> list[HistoryEntry]:
        """The commits that touched a model in an environment as of the last sync or commit, newest first."""
        directory = str(gitops.environment_directory(model, environment))

        def read() -> list[HistoryEntry]:
            arguments = list(LOG)
            if limit is not None:
                arguments.append(f"--max-count={limit}")
            text = self._checkout.local(*arguments, self._head(), "--", directory)
            return [read_entry(record) for record in records(text)]

        with self._checkout.locked():
            return self._repaired(read)

    def every_transition(self) -> list[HistoryEntry]:
        """The commits that touched any model, also one that is not there any more, as of the last sync or commit, newest first."""

        def read() -> list[HistoryEntry]:
            text = self._checkout.local(*LOG, self._head(), "--", str(gitops.MODELS))
            return [read_entry(record) for record in records(text)]

        with self._checkout.locked():
            return self._repaired(read)

    def landed(self, model: str, environment: str) -> list[tuple[HistoryEntry, Touched]]:
        """Every commit of the branch itself (a merge counts as one) that touched a model in an environment, oldest first, with
        the files that it wrote and removed there."""
        directory = str(gitops.environment_directory(model, environment))

        def read() -> list[tuple[HistoryEntry, Touched]]:
            text = self._checkout.local(*LANDED, self._head(), "--", directory)
            return [read_landed(record) for record in records(text)][::-1]

        with self._checkout.locked():
            return self._repaired(read)

    def commit_beside(self, model: str, environment: str, decide: Decide) -> CommitResult:
        """Write files beside a state, on top of whatever is newest, without changing the state or its manifests.

        `decide` sees the newest state, so that what no longer fits is not written; what it raises is raised. Otherwise as
        `commit_transition`: the same content makes no commit, and a lost race is tried again.
        """
        return self._committed(lambda: self._attempt_files(model, environment, decide))

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
        return self._committed(
            lambda: self._attempt(model, environment, build, render, extra_files)
        )

    def commit_files(self, files: Files, subject: str, body: str = "") -> str | None:
        """Bring files (paths from the repository's root) into the remote's branch in one commit, which is returned; None
        where they stand there already. Errors as for `commit_transition`."""

        def attempt() -> tuple[str | None] | None:
            head = self._fetch()
            self._checkout.reset(head)
            self._checkout.write(files)
            message = gitops.format_message(subject, body, {})
            commit = self._checkout.commit(head, list(files), message)
            if commit is not None and not self._checkout.push(commit, self.branch):
                return None
            return (commit,)

        (commit,), *_ = self._insist(attempt)
        return commit

    def _committed(self, attempt: Callable[[], CommitResult | None]) -> CommitResult:
        result, attempts, seconds = self._insist(attempt)
        return replace(result, attempts=attempts, seconds=seconds)

    def _insist(self, attempt: Callable[[], T | None]) -> tuple[T, int, float]:
        """`attempt` until it is not overtaken: what came of it, how many there were, and seconds."""
        began = time.monotonic()
        attempts = 0
        with self._checkout.locked():
            while True:
                attempts += 1
                result = self._repaired(attempt)
                seconds = time.monotonic() - began
                if result is not None:
                    return result, attempts, seconds
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

    def _attempt_files(self, model: str, environment: str, decide: Decide) -> CommitResult | None:
        """One fetch, decision, commit and push; None if another writer was faster."""
        head = self._fetch()
        state = self._read_state(head, model, environment)
        change = decide(state)
        if change is None:
            return CommitResult(False, head, state, None, None, 1, 0.0)
        directory = gitops.environment_directory(model, environment)
        manifests = gitops.manifests_directory(model, environment)
        for name in change.files:
            path = PurePosixPath(name)
            own = path == gitops.state_path(model, environment) or path.is_relative_to(manifests)
            if own or not path.is_relative_to(directory) or ".." in path.parts:
                raise GitError(f"{name!r} is not a file beside the state of {model}/{environment}")
        self._checkout.reset(head)
        self._checkout.write(change.files)
        commit = self._checkout.commit(head, list(change.files), change.message)
        if commit is None:
            return CommitResult(False, head, state, None, None, 1, 0.0)
        if not self._checkout.push(commit, self.branch):
            return None
        return CommitResult(True, commit, state, None, None, 1, 0.0)

    def _read_protected(self, path: PurePosixPath) -> str:
        """A file of the policy branch; `GitError` where there is none."""

        def read() -> str | None:
            self._head()
            commit = self._checkout.fetched(self._policy_branch)
            return self._checkout.read(commit, str(path)) if commit else None

        with self._checkout.locked():
            text = self._repaired(read)
        if text is None:
            raise GitError(
                f"branch {self._policy_branch} of {self._checkout.shown_remote} has no {path}",
                hint="lay the repository down with `lockgate init`",
            )
        return text

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
