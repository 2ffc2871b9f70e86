"""Running git: bounded in time, in a process group of its own, never asking anybody anything.

GitPython starts the processes and hides passwords in what is told about them. Its own timeout kills direct children only,
so commands that may hang on a network run under coreutils' `timeout` where there is one: that also ends a command whose
caller was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lockgate.errors import EnvironmentMissing, GitError

_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never"}

_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.autocrlf=false",
    "core.quotePath=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "gc.autoDetach=false",
    "commit.gpgSign=false",
    "advice.detachedHead=false",
)


@dataclass(frozen=True)
class Author:
    """Whom commits name as author and committer."""

    name: str
    email: str


LOCKGATE = Author("Lockgate", "lockgate@localhost")
OPENPGP = "openpgp:"


def signing_settings(key: str | Path) -> tuple[str, ...]:
    """Git's settings for commits that are signed with `key`: the file of an SSH key, or `openpgp:FINGERPRINT` of a key in this
    user's GnuPG keyring."""
    name = str(key)
    if name.startswith(OPENPGP):
        # The mark: this very key, not a subkey that GnuPG likes better.
        chosen = ("gpg.format=openpgp", f"user.signingKey={name.removeprefix(OPENPGP)}!")
    else:
        chosen = ("gpg.format=ssh", f"user.signingKey={name}")
    return ("commit.gpgSign=true", *chosen)


@dataclass(frozen=True)
class Finished:
    """A git command that ended by itself."""

    command: str
    """As it may be shown: passwords hidden."""
    code: int
    output: str
    error: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    def said(self) -> str:
        """The last lines of what git said, for an error message."""
        text = (self.error.strip() or self.output.strip()).splitlines()
        return " | ".join(line.strip() for line in text[-6:])[-1000:] or f"exit status {self.code}"


class GitTimeout(GitError):
    """A git command did not end in time."""


class GitRunner:
    """Runs git on the repository in `directory/.git`, and on no other.

    The repository is named outright: git looking for one would find, above a damaged clone, the repository that the
    workspace happens to lie in.
    """

    def __init__(
        self, directory: Path, *, author: Author, timeout: float, bare: bool = False
    ) -> None:
        self.directory = directory
        self.git_directory = directory if bare else directory / ".git"
        self.author = author
        self.timeout = timeout
        self._environment = {
            **_ENVIRONMENT,
            "GIT_DIR": str(self.git_directory),
            "GIT_INDEX_FILE": str(self.git_directory / "index"),
            **({} if bare else {"GIT_WORK_TREE": str(directory)}),
            "GIT_AUTHOR_NAME": author.name,
            "GIT_AUTHOR_EMAIL": author.email,
            "GIT_COMMITTER_NAME": author.name,
            "GIT_COMMITTER_EMAIL": author.email,
        }

    def run(
        self,
        *arguments: str,
        network: bool = False,
        settings: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> Finished:
        """Run `git <arguments>` and wait for it; a failing exit status is returned, not raised.

        Raises `GitTimeout` after the timeout, with every process of the command ended, and `EnvironmentMissing` without git.
        """
        # GitPython looks for git when it is imported: not before it is needed.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import git
        from git.util import remove_password_if_present

        command = ["git"]
        for setting in (*_SETTINGS, *settings):
            command += ["-c", setting]
        command += arguments
        shown = " ".join(remove_password_if_present(["git", *arguments]))
        limiter = shutil.which("timeout") if network else None
        if limiter is not None:
            command = [limiter, "--kill-after=2", f"{self.timeout:.3f}", *command]
        try:
            handle = git.Git(str(self.directory)).execute(
                command,
                as_process=True,
                env=self._environment,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        except git.exc.GitCommandNotFound as error:
            raise EnvironmentMissing(
                "git is not installed", hint="install git 2.34 or newer"
            ) from error
        # GitPython ends a process whose handle is forgotten: `handle` lives until the end of this method.
        process = handle.proc
        assert process is not None
        try:
            output, error_output = process.communicate(timeout=self.timeout + 3)
        except subprocess.TimeoutExpired as error:
            raise self._timed_out(shown) from error
        finally:
            _end_group(process)
        if limiter is not None and process.returncode in (124, 137, -signal.SIGKILL):
            raise self._timed_out(shown)
        return Finished(shown, process.returncode, _text(output), _text(error_output))

    def _timed_out(self, shown: str) -> GitTimeout:
        return GitTimeout(
            f"`{shown}` did not end within {self.timeout:.0f} s",
            hint="check the connection to the Git remote",
        )


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the command's process group."""
    if process.poll() is None:
        # It may end between the two calls.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
