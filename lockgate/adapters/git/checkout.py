"""A clone on disk that only ever serves one remote: fetched, written and pushed under a lock, made anew when damaged."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from lockgate.adapters.git.process import (
    LOCKGATE,
    Author,
    Finished,
    GitRunner,
    GitTimeout,
    signing_settings,
)
from lockgate.errors import GitError

_OVERTAKEN = re.compile(
    r"fetch first|non-fast-forward|stale info|cannot lock ref|failed to (update|lock) ref"
    r"|incorrect old value|reference already exists|unable to create .*\.lock",
    re.IGNORECASE,
)
"""What git and the hosting services say of a push that lost a race."""


class LocalDamage(GitError):
    """The clone itself is unusable: a new one has to be made."""


class Checkout:
    """The clone in `directory`. All methods but `locked` are to be called under the lock.

    The lock is an flock beside the directory whose descriptor the git processes inherit: as long as a git process of a
    killed caller lives, nobody else touches the clone, and what it left behind is cleared away afterwards.
    """

    def __init__(
        self,
        remote: str,
        directory: Path,
        *,
        author: Author,
        signing_key: str | Path | None,
        timeout: float,
    ) -> None:
        self.directory = directory.absolute()
        self._remote = remote
        self._signing_key = signing_key
        self._timeout = timeout
        self._git = GitRunner(self.directory, author=author, timeout=timeout)
        self._threads = threading.RLock()
        self._lock: int | None = None

    @property
    def shown_remote(self) -> str:
        """The remote as it may be shown: no user, no password."""
        return re.sub(r"//[^/@]*@", "//", self._remote)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the clone to oneself. A thread that has it may ask again. Raises `GitError` when it is not to be had."""
        patience = 2 * self._timeout + 10
        if not self._threads.acquire(timeout=patience):
            raise self._busy(patience)
        try:
            if self._lock is not None:
                yield
                return
            self._lock = self._acquire(patience)
            try:
                self._prepare()
                yield
            finally:
                lock, self._lock = self._lock, None
                os.close(lock)
        finally:
            self._threads.release()

    def fetch(self, branches: Sequence[str]) -> None:
        """Bring the local copies of the remote's branches up to date. Raises `GitError`."""
        refspecs = [f"+refs/heads/{name}:refs/remotes/origin/{name}" for name in branches]
        done = self._run(
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            self._remote,
            *refspecs,
            network=True,
        )
        if done.ok:
            return
        if "couldn't find remote ref" in done.error:
            raise GitError(
                f"{self.shown_remote} has no branch {' or '.join(branches)}",
                hint="lay the repository down with `lockgate init`",
            )
        if not self._is_sound():
            raise LocalDamage(f"the clone in {self.directory} is damaged: {done.said()}")
        raise GitError(
            f"cannot fetch from {self.shown_remote}: {done.said()}",
            hint="check that the Git remote is up and that this user may read it",
        )

    def branch_exists(self, branch: str) -> bool:
        """Whether the remote has the branch. Raises `GitError` if it cannot say."""
        done = self._run(
            "ls-remote", "--exit-code", self._remote, f"refs/heads/{branch}", network=True
        )
        if done.ok or (done.code == 2 and not done.output):
            return done.ok
        raise GitError(
            f"cannot read {self.shown_remote}: {done.said()}",
            hint="check that the Git remote is up and that this user may read it",
        )

    def fetched(self, branch: str) -> str | None:
        """Newest commit of a branch as of the last fetch or push."""
        name = f"refs/remotes/origin/{branch}^{{commit}}"
        done = self._run("rev-parse", "--verify", "--quiet", name)
        if done.code > 1:
            raise LocalDamage(f"the clone in {self.directory} is damaged: {done.said()}")
        return done.output.strip() if done.ok else None

    def read(self, commit: str, path: str) -> str | None:
        """Text of a file in a commit; None if it is not there."""
        done = self._run("cat-file", "blob", f"{commit}:{path}")
        if done.ok:
            return done.output
        if self.local("ls-tree", commit, "--", path).strip():
            raise LocalDamage(f"the clone in {self.directory} is damaged: {done.said()}")
        return None

    def list(self, commit: str, directory: str) -> list[str]:
        """Paths of all files below a directory in a commit."""
        return self.local("ls-tree", "-r", "--name-only", commit, "--", directory).splitlines()

    def is_ancestor(self, commit: str, head: str) -> bool:
        """Whether `head` is `commit` or comes after it. False for a commit that is not here."""
        return self._run("merge-base", "--is-ancestor", commit, head).ok

    def local(self, *arguments: str) -> str:
        """Output of a git command that needs nothing but a sound clone."""
        done = self._run(*arguments)
        if not done.ok:
            raise LocalDamage(f"`{done.command}` failed in {self.directory}: {done.said()}")
        return done.output

    def reset(self, commit: str) -> None:
        """Make the working tree that of `commit`, whatever was there."""
        self.local("reset", "--quiet", "--hard", commit)
        self.local("clean", "-ffdxq")

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write files into the working tree, by path from its root."""
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            path = self._inside(PurePosixPath(name))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except OSError as error:
                raise GitError(f"cannot write {path}: {error}") from error

    def replace_directory(self, directory: PurePosixPath, files: Mapping[str, str]) -> None:
        """Make `files` (paths from the root, below `directory`) all that a directory of the working tree holds."""
        for name in files:
            path = PurePosixPath(name)
            if not path.is_relative_to(directory) or path == directory or ".." in path.parts:
                raise GitError(f"a file outside {directory}: {name!r}")
        target = self._inside(directory)
        try:
            if target.exists():
                shutil.rmtree(target)
        except OSError as error:
            raise GitError(f"cannot clear {target}: {error}") from error
        self.write(files)

    def commit(self, parent: str, paths: Sequence[str], message: str) -> str | None:
        """A commit of `paths` on top of `parent`; None if nothing differs from it. No branch moves."""
        self.local("add", "--all", "--force", "--", *paths)
        tree = self.local("write-tree").strip()
        if tree == self.local("rev-parse", f"{parent}^{{tree}}").strip():
            return None
        note = self._git.git_directory / "LOCKGATE_MESSAGE"
        try:
            note.write_text(message, encoding="utf-8")
        except OSError as error:
            raise GitError(f"cannot write {note}: {error}") from error
        if self._signing_key is None:
            return self.local("commit-tree", tree, "-p", parent, "-F", str(note)).strip()
        done = self._run(
            *("commit-tree", tree, "-p", parent, "-F", str(note), "-S"),
            settings=signing_settings(self._signing_key),
        )
        if not done.ok:
            raise GitError(
                f"the commit cannot be signed with {self._signing_key}: {done.said()}",
                hint="give an SSH private key without a passphrase, or one that ssh-agent holds; or openpgp:FINGERPRINT of a "
                "key in this user's keyring that GnuPG signs with without asking",
            )
        return done.output.strip()

    def push(self, commit: str, branch: str) -> bool:
        """Move the remote's branch forward to `commit`. False if another writer was faster; `GitError` otherwise.

        An answer that was lost on the way is asked for again: the remote says whether it has the commit.
        """
        try:
            done = self._run(
                *("push", "--porcelain", "--no-verify", self._remote),
                f"{commit}:refs/heads/{branch}",
                network=True,
            )
        except GitTimeout:
            if self._has_landed(commit, branch):
                return True
            raise
        if done.ok or (not _refusal(done) and self._has_landed(commit, branch)):
            self.local("update-ref", f"refs/remotes/origin/{branch}", commit)
            return True
        if _OVERTAKEN.search(_refusal(done)):
            return False
        raise GitError(
            f"{self.shown_remote} did not take the commit: {_refusal(done) or done.said()}"
            + (f" ({done.said()})" if _refusal(done) else ""),
            hint=f"check that this user may push to {branch}; nothing was changed",
        )

    def make_anew(self) -> None:
        """Replace the clone by an empty one; the next fetch fills it."""
        parent = self.directory.parent
        fresh = Path(tempfile.mkdtemp(prefix=f"{self.directory.name}.new-", dir=parent))
        try:
            runner = GitRunner(fresh, author=LOCKGATE, timeout=self._timeout)
            done = runner.run("init", "--quiet", "--template=", "--initial-branch=work")
            if not done.ok:
                raise GitError(f"cannot make a clone in {fresh}: {done.said()}")
            if self.directory.exists():
                old = Path(tempfile.mkdtemp(prefix=f"{self.directory.name}.old-", dir=parent))
                self.directory.rename(old / "damaged")
                shutil.rmtree(old, ignore_errors=True)
            fresh.rename(self.directory)
        except OSError as error:
            raise GitError(f"cannot make a clone in {self.directory}: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def collect_garbage(self) -> None:
        """Pack loose objects when there are many. Not part of any write, so that none is slowed down by it."""
        # It is only tidying: what does not end in time is taken up the next time.
        with suppress(GitTimeout):
            self._run("gc", "--auto", "--quiet", settings=("gc.auto=2000",))

    def _is_sound(self) -> bool:
        """Whether the clone has what its refs name. One too large to be checked in time counts as sound."""
        with suppress(GitTimeout):
            return self._run("fsck", "--connectivity-only", "--no-progress", "--no-dangling").ok
        return True

    def _has_landed(self, commit: str, branch: str) -> bool:
        self.fetch([branch])
        head = self.fetched(branch)
        return head is not None and self.is_ancestor(commit, head)

    def _inside(self, path: PurePosixPath) -> Path:
        """The path in the working tree; a link in the repository must not lead out of it, nor into `.git`."""
        target = self.directory / path
        real = target.parent.resolve() / target.name
        root = self.directory.resolve()
        if (
            path.is_absolute()
            or not real.is_relative_to(root)
            or ".git" in path.parts
            or target.is_symlink()
        ):
            raise GitError(f"{path} does not lie in the repository")
        return target

    def _run(
        self, *arguments: str, network: bool = False, settings: Sequence[str] = ()
    ) -> Finished:
        fds = () if self._lock is None else (self._lock,)
        return self._git.run(*arguments, network=network, settings=settings, pass_fds=fds)

    def _acquire(self, patience: float) -> int:
        path = self.directory.with_name(f"{self.directory.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise GitError(f"cannot lock the clone in {self.directory}: {error}") from error
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise self._busy(patience) from None
                time.sleep(0.01)

    def _prepare(self) -> None:
        git = self._git.git_directory
        if not (git / "HEAD").is_file() or not (git / "objects").is_dir():
            self.make_anew()
            return
        # We hold the lock, so these are of processes that are dead.
        for name in ("index.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "gc.pid"):
            (git / name).unlink(missing_ok=True)
        for left in (git / "refs").rglob("*.lock"):
            left.unlink(missing_ok=True)

    def _busy(self, patience: float) -> GitError:
        return GitError(
            f"the clone in {self.directory} was in use by another process for {patience:.0f} s",
            hint="give each long-running process a checkout directory of its own",
        )


def _refusal(done: Finished) -> str:
    """What the remote said of the ref, e.g. `[rejected] (fetch first)`; empty if it said nothing."""
    for line in done.output.splitlines():
        if line.startswith("!\t"):
            return line.split("\t", 2)[-1]
    return ""
