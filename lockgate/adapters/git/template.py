"""Laying down a new GitOps repository from `gitops_repo_template/`.

The template is a real repository, made for the environment `local`. Another environment's files are the same documents
with names and paths of that environment in them: they are changed as data, and written anew.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from lockgate.adapters.git.checkout import Checkout
from lockgate.adapters.git.process import LOCKGATE, Author, Finished, GitRunner
from lockgate.domain import gitops
from lockgate.domain.policy import Policy
from lockgate.errors import GitError, UsageError

Agent = Literal["embedded", "argocd", "flux"]
"""What applies the manifests; `embedded` is Lockgate's own local cluster, which needs no objects to be told."""

_ENVIRONMENT = "local"
_REMOTE = "https://git.example.com/platform/gitops.git"


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
    environment: str,
    agent: Agent,
    public_key_pem: str,
    remote: str | None,
    branch: str = "main",
    policy: Policy | None = None,
    author: Author = LOCKGATE,
    timeout: float = 30.0,
) -> LaidDown:
    """Make a GitOps repository in `target`, with a first commit, and push it to `remote` if there is one.

    `public_key_pem` is the release key whose signature counts, `policy` the rest of the policy (default: the strict one). A
    `remote` that is a path of this machine is made if it is not there: bare, refusing forced pushes. A second run changes
    nothing; nor does a run on a remote that somebody else has laid down meanwhile. Raises `UsageError` where something else
    is in the way, `GitError` where git cannot do it.
    """
    gitops.environment_directory("model", environment)
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
        _make(template_dir, target, environment, agent, public_key_pem, remote, policy, branch, git)
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
        remote, scratch / "probe", author=LOCKGATE, ssh_signing_key=None, timeout=timeout
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
    environment: str,
    agent: Agent,
    public_key_pem: str,
    remote: str | None,
    policy: Policy | None,
    branch: str,
    git: GitRunner,
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
        _choose_agent(fresh, agent)
        _name_environment(fresh, environment, _flux_address(remote) if agent == "flux" else remote)
        _write_policy(fresh / gitops.POLICY, public_key_pem, policy)
        inside = GitRunner(fresh, author=git.author, timeout=git.timeout)
        _checked(inside.run("init", "--quiet", "--template=", f"--initial-branch={branch}"))
        if remote is not None:
            _checked(inside.run("remote", "add", "origin", remote))
        _checked(inside.run("add", "--all", "--force"))
        message = gitops.format_message(
            f"Lay down the GitOps repository for {environment}", "", {"Lockgate-Agent": agent}
        )
        _checked(inside.run("commit", "--quiet", "--no-verify", "-m", message))
        fresh.chmod(0o755)
        if target.exists():
            target.rmdir()
        fresh.rename(target)
    except OSError as error:
        raise GitError(f"cannot lay down {target}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _choose_agent(root: Path, agent: Agent) -> None:
    clusters = root / "clusters"
    if agent == "embedded":
        shutil.rmtree(clusters)
        return
    for directory in clusters.glob("*/*"):
        if directory.name != agent:
            shutil.rmtree(directory)


def _name_environment(root: Path, environment: str, remote: str | None) -> None:
    """Put the environment's and the remote's names where the template has its own."""
    own = re.compile(
        rf"(?<=lockgate-){_ENVIRONMENT}\b|(?<=-){_ENVIRONMENT}$|(?<=/){_ENVIRONMENT}(?=/|$)", re.M
    )

    def change(text: str) -> str:
        if text == _REMOTE:
            return remote or text
        return own.sub(environment, text)

    for directory in (root / "clusters", root / "platform" / "environments"):
        for path in sorted(directory.glob(f"{_ENVIRONMENT}/**/*.yaml")):
            documents = list(yaml.safe_load_all(path.read_text()))
            changed = [_map_strings(document, change) for document in documents]
            if changed != documents:
                path.write_text("---\n".join(gitops.dump_yaml(d) for d in changed))
    if environment == _ENVIRONMENT:
        return
    for pattern in ("clusters", "platform/environments", "apps/*/environments"):
        for directory in root.glob(f"{pattern}/{_ENVIRONMENT}"):
            directory.rename(directory.with_name(environment))


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value


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
