"""Branches that hold one frozen request on top of the protected branch, and whether exactly that has landed on it.

In a clone of its own: it is asked while another one is locked for a transition.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lockgate.adapters.git.checkout import Checkout, LocalDamage
from lockgate.adapters.git.process import LOCKGATE
from lockgate.errors import GitError, PushRejected

T = TypeVar("T")


class RequestBranches:
    """Of one remote. Errors: `GitError` where it cannot be read or written."""

    def __init__(
        self,
        remote: str,
        checkout: Path,
        protected: str,
        *,
        signing_key: str | Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.protected = protected
        self._checkout = Checkout(
            remote, checkout, author=LOCKGATE, signing_key=signing_key, timeout=timeout
        )

    def propose(self, branch: str, path: PurePosixPath, text: str, message: str) -> str:
        """Push `branch`: the protected branch and one file more; returns its commit. One that is there already is kept: a run
        that was ended after its push is gone on with. Raises `GitError` where it holds anything else than that."""

        def attempt() -> str:
            checkout = self._checkout
            base = self._head()
            if not checkout.branch_exists(branch):
                checkout.reset(base)
                checkout.write({str(path): text})
                commit = checkout.commit(base, [str(path)], message)
                if commit is None:
                    raise GitError(f"{self.protected} holds {path} already, without a merge")
                if checkout.push(commit, branch):
                    return commit
            checkout.fetch([branch])
            found = checkout.fetched(branch)
            if found is None:
                raise PushRejected(f"{branch} was removed again")
            self._must_be_request(found, branch, path, text)
            return found

        return self._with_clone(attempt)

    def is_request(self, commit: str, branch: str, path: PurePosixPath, text: str) -> bool:
        """Whether `commit` is the head of `branch` and one that `propose` makes."""

        def read() -> bool:
            self._head()
            if not self._checkout.branch_exists(branch):
                return False
            self._checkout.fetch([branch])
            if self._checkout.fetched(branch) != commit:
                return False
            try:
                self._must_be_request(commit, branch, path, text)
            except GitError:
                return False
            return True

        return self._with_clone(read)

    def has_landed(self, commit: str, path: PurePosixPath, text: str) -> bool:
        """Whether the protected branch has `commit`, and it brought this file and nothing else."""
        return self._with_clone(
            lambda: (
                self._checkout.is_ancestor(commit, self._head())
                and self._brings_only(commit, path, text)
            )
        )

    def holds(self, path: PurePosixPath) -> bool:
        """Whether the protected branch has the file now."""
        return self._with_clone(lambda: self._checkout.read(self._head(), str(path)) is not None)

    def _head(self) -> str:
        self._checkout.fetch([self.protected])
        head = self._checkout.fetched(self.protected)
        if head is None:
            raise GitError(f"{self._checkout.shown_remote} has no branch {self.protected}")
        return head

    def _must_be_request(self, commit: str, branch: str, path: PurePosixPath, text: str) -> None:
        base = self._checkout.fetched(self.protected)
        parents = self._checkout.local("rev-list", "--parents", "--max-count=1", commit).split()[1:]
        if (
            base is None
            or len(parents) != 1
            or not self._checkout.is_ancestor(parents[0], base)
            or not self._brings_only(commit, path, text)
        ):
            raise GitError(
                f"head_changed: {branch} is at {commit[:12]}, which is not the request alone",
                hint=f"find out who pushed to it; then remove it: `git push origin :{branch}`",
            )

    def _brings_only(self, commit: str, path: PurePosixPath, text: str) -> bool:
        """Of a merge: compared with the branch that it was made on."""
        parents = self._checkout.local("rev-list", "--parents", "--max-count=1", commit).split()[1:]
        if not parents:
            return False
        changed = self._checkout.local(
            "diff-tree", "-r", "--no-renames", "--name-status", parents[0], commit
        )
        return changed == f"A\t{path}\n" and self._checkout.read(commit, str(path)) == text

    def _with_clone(self, work: Callable[[], T]) -> T:
        with self._checkout.locked():
            try:
                return work()
            except LocalDamage:
                self._checkout.make_anew()
                return work()
