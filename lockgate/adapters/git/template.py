"""Laying down a new GitOps repository from `gitops_repo_template/`: once, and pushed to its remote if it has one."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from lockgate.adapters.git.checkout import Checkout
from lockgate.adapters.git.layout import Layout, arrange
from lockgate.adapters.git.process import LOCKGATE, Author, Finished, GitRunner, signing_settings
from lockgate.domain import gitops
from lockgate.domain.policy import Policy
from lockgate.errors import GitError, UsageError


@dataclass(frozen=True)
class LaidDown:
    """A GitOps repository that is there."""

    commit: str
    """Newest commit of the branch."""
    created: bool
    """False if it was there before."""


def template_directory() -> Path:
    """Where the template lies: in the installed package, else beside it in a source checkout."""
    package = Path(str(resources.files("lockgate")))
    for candidate in (package / "gitops_repo_template", package.parent / "gitops_repo_template"):
        if (candidate / "policy.yaml").is_file():
            return candidate
    raise UsageError(
        f"the GitOps repository's template is not beside {package}", hint="install Lockgate anew"
    )


def lay_down(
    template_dir: Path,
    target: Path,
    *,
    layout: Layout,
    public_key_pem: str,
    branch: str = "main",
    policy: Policy | None = None,
    author: Author = LOCKGATE,
    signing_key: str | Path | None = None,
    timeout: float = 30.0,
) -> LaidDown:
    """Make a GitOps repository in `target`, with a first commit, and push it to the layout's remote if it has one.

    `public_key_pem` is the release key whose signature counts, `policy` the rest of the policy (default: the strict one);
    `signing_key` signs the commit, where agents verify it. A `remote` that is a path of this machine is made if it is not there: bare, refusing forced pushes. A second run changes
    nothing; nor does a run on a remote that somebody else has laid down meanwhile. Raises `UsageError` where something else
    is in the way, `GitError` where git cannot do it.
    """
    remote, agent = layout.remote, layout.agent
    local = remote is None or _is_path(remote)
    if agent != "embedded" and local:
        raise UsageError(
            f"{agent} cannot read the GitOps repository from {remote or target}",
            hint="give the https:// or ssh:// address of a Git host",
        )
    if remote is not None and local:
        _make_bare(Path(remote), branch, timeout)
    with tempfile.TemporaryDirectory(prefix="lockgate-init-") as scratch:
        probe = _probe(remote, Path(scratch), branch, timeout) if remote is not None else None
        if probe is not None:
            return LaidDown(probe, created=False)

    git = GitRunner(target, author=author, timeout=timeout)
    created = not (target / ".git").is_dir()
    if created:
        _make(
            template_dir, target, layout, public_key_pem=public_key_pem, policy=policy,
            branch=branch, git=git, signing_key=signing_key,
        )  # fmt: skip
    commit = _checked(git.run("rev-parse", "HEAD")).output.strip()
    if remote is None:
        return LaidDown(commit, created)
    pushed = git.run("push", "--porcelain", remote, f"{commit}:refs/heads/{branch}", network=True)
    if pushed.ok:
        return LaidDown(commit, created=True)
    with tempfile.TemporaryDirectory(prefix="lockgate-init-") as scratch:
        other = _probe(remote, Path(scratch), branch, timeout)
    if other is None:
        raise GitError(
            f"the first commit cannot be pushed to {remote}: {pushed.said()}",
            hint="check that this user may push; then run it again",
        )
    return LaidDown(other, created=other == commit)


def _probe(remote: str, scratch: Path, branch: str, timeout: float) -> str | None:
    """Newest commit of a repository that was laid down in the remote; None if the branch is not there."""
    checkout = Checkout(
        remote, scratch / "probe", author=LOCKGATE, signing_key=None, timeout=timeout
    )
    with checkout.locked():
        if not checkout.branch_exists(branch):
            return None
        checkout.fetch([branch])
        commit = checkout.fetched(branch)
        if commit is None or checkout.read(commit, str(gitops.POLICY)) is None:
            raise UsageError(
                f"{checkout.shown_remote} has a branch {branch} without a policy.yaml: it is some other repository",
                hint="give an empty repository, or another branch",
            )
        return commit


def _make(
    template_dir: Path,
    target: Path,
    layout: Layout,
    *,
    public_key_pem: str,
    policy: Policy | None,
    branch: str,
    git: GitRunner,
    signing_key: str | Path | None = None,
) -> None:
    if target.exists() and any(target.iterdir()):
        raise UsageError(
            f"{target} is not empty and no Git repository", hint="give another directory"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.new-", dir=target.parent))
    except OSError as error:
        raise GitError(f"cannot write beside {target}: {error}") from error
    try:
        shutil.copytree(template_dir, fresh, dirs_exist_ok=True)
        for script in (fresh / "scripts").glob("*.sh"):
            script.chmod(0o755)  # An installer may have dropped it.
        address = _flux_address(layout.remote) if layout.agent == "flux" else layout.remote
        arrange(fresh, replace(layout, remote=address), public_key_pem)
        _write_policy(fresh / gitops.POLICY, public_key_pem, policy)
        inside = GitRunner(fresh, author=git.author, timeout=git.timeout)
        _checked(inside.run("init", "--quiet", "--template=", f"--initial-branch={branch}"))
        if layout.remote is not None:
            _checked(inside.run("remote", "add", "origin", layout.remote))
        _checked(inside.run("add", "--all", "--force"))
        message = gitops.format_message(
            f"Lay down the GitOps repository for {', '.join(layout.environments)}",
            "",
            {"Lockgate-Agent": layout.agent, "Lockgate-Cloud": layout.cloud or "none"},
        )
        _checked(
            inside.run(
                *("commit", "--quiet", "--no-verify", "-m", message),
                settings=signing_settings(signing_key) if signing_key is not None else (),
            )
        )
        fresh.chmod(0o755)
        if target.exists():
            target.rmdir()
        fresh.rename(target)
    except OSError as error:
        raise GitError(f"cannot lay down {target}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_policy(path: Path, public_key_pem: str, policy: Policy | None) -> None:
    base = policy or gitops.load_policy(path.read_text())
    keys = tuple(dict.fromkeys((*base.signing.public_keys, public_key_pem)))
    signing = base.signing.model_copy(update={"public_keys": keys})
    path.write_text(gitops.dump_yaml(base.model_copy(update={"signing": signing}).to_data()))


def _is_path(remote: str) -> bool:
    """Whether git would take the address for a path: no scheme, and no `host:` before the first slash."""
    return "://" not in remote and ":" not in remote.split("/", 1)[0]


def _flux_address(remote: str | None) -> str | None:
    """Flux takes `ssh://user@host/path` where git also takes `user@host:path`."""
    if remote is None or "://" in remote:
        return remote
    host, path = remote.split(":", 1)
    return f"ssh://{host}/{path.lstrip('/')}"


def _make_bare(path: Path, branch: str, timeout: float) -> None:
    """A bare repository that never loses a commit, unless there is one."""
    if path.exists() and any(path.iterdir()):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{path.name}.new-", dir=path.parent))
    except OSError as error:
        raise GitError(f"cannot write beside {path}: {error}") from error
    try:
        git = GitRunner(fresh, author=LOCKGATE, timeout=timeout, bare=True)
        _checked(git.run("init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}"))
        for key in ("receive.denyNonFastForwards", "receive.denyDeletes", "receive.fsckObjects"):
            _checked(git.run("config", key, "true"))
        fresh.chmod(0o755)
        if path.exists():
            path.rmdir()
        fresh.rename(path)
    except OSError as error:
        if not (path / "HEAD").is_file():
            raise GitError(f"cannot make the bare repository {path}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _checked(done: Finished) -> Finished:
    if not done.ok:
        raise GitError(f"`{done.command}` failed: {done.said()}")
    return done
