"""Transitions in a real repository: what one commit holds, and what is never done to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from lockgate.adapters.git import GitOpsRepository, Layout
from lockgate.domain import gitops
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import Transition, Wait, start
from lockgate.errors import GitError, Refused, UsageError
from tests.integration.git.layouts import lay_files
from tests.integration.git.repositories import (
    commit_last,
    commits,
    git,
    make_remote,
    releasing,
    render,
    repository,
    somebody_pushes,
    taking,
)
from tests.unit.rollout.world import BEGIN, REPORT, SPEC, Rollout, in_canary, occupant


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return make_remote(tmp_path)


def replay(repo: GitOpsRepository, rollout: Rollout) -> None:
    for transition in rollout.transitions:
        result = repo.commit_transition("m", "prod", lambda _state, made=transition: made, render)
        assert result.committed


def test_a_transition_is_one_commit_with_state_manifests_verdict_and_trailers(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path)
    rollout = in_canary()
    replay(repo, rollout)
    rollout.hears("fail")
    report = gitops.verdict_path("m", "prod", REPORT)
    result = repo.commit_transition(
        "m", "prod", taking(rollout), render, extra_files=lambda made: {str(report): "{}\n"}
    )
    assert result.committed
    assert commits(remote)[0] == result.commit
    changed = git("show", "--name-only", "--format=", result.commit, at=remote).split()
    assert sorted(changed) == [
        "models/m/prod/manifests/a.yaml",
        "models/m/prod/manifests/b.yaml",
        "models/m/prod/release.yaml",
        str(report),
    ]
    other = repository(tmp_path, "other")
    assert other.read_state("m", "prod") == rollout.state
    [entry, *_] = other.history("m", "prod")
    assert (entry.commit, entry.phase, entry.transition) == (result.commit, "draining", "rollback")
    assert entry.verdict == f"fail {REPORT}"
    assert [e.phase for e in other.history("m", "prod")] == [
        *("draining", "canary", "deploying", "stable", "deploying")
    ]
    assert len(other.history("m", "prod", limit=2)) == 2


def test_manifests_that_are_not_rendered_any_more_are_removed(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    rollout = in_canary()
    rollout.hears("fail")
    replay(repo, rollout)
    assert repo.read_text("models/m/prod/manifests/b.yaml") is not None
    rollout.after(60).sees()
    commit_last(repo, rollout)
    assert repo.read_text("models/m/prod/manifests/b.yaml") is None
    assert repo.read_text("models/m/prod/manifests/a.yaml") is not None


def test_nothing_to_do_makes_no_commit(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    repo.commit_transition("m", "prod", releasing("one"), render)
    before = commits(remote)
    again = repo.commit_transition("m", "prod", releasing("one"), render)
    assert not again.committed
    assert isinstance(again.wait, Wait)
    assert again.state.phase is Phase.DEPLOYING
    assert repo.commit_transition("m", "prod", lambda _state: None, render).committed is False
    assert commits(remote) == before


def test_a_refusal_leaves_no_trace(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    repo.commit_transition("m", "prod", releasing("one"), render)
    before = commits(remote)
    with pytest.raises(Refused):
        repo.commit_transition("m", "prod", releasing("two"), render)
    assert commits(remote) == before


def test_a_failing_render_leaves_no_trace_and_does_not_spoil_the_next_commit(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path)

    def broken(state: ReleaseState, root: Path) -> dict[str, str]:
        (root / "left-behind.yaml").write_text("x")
        raise UsageError("no such base")

    with pytest.raises(UsageError):
        repo.commit_transition("m", "prod", releasing("one"), broken)
    repo.commit_transition("m", "prod", releasing("one"), render)
    files = git("ls-tree", "-r", "--name-only", "main", at=remote)
    assert "left-behind" not in files


def test_a_lost_race_is_built_again_on_what_is_there_now(tmp_path: Path, remote: Path) -> None:
    repo, rival = repository(tmp_path), repository(tmp_path, "rival")
    rollout = in_canary()
    replay(repo, rollout)
    seen: list[int] = []
    rollout.hears("fail")

    def build(state: ReleaseState) -> Transition | None:
        seen.append(state.generation)
        if len(seen) == 1:
            commit_last(rival, rollout)
            somebody_pushes(tmp_path, "apps/vllm/base/note.yaml", "a: 1\n")
        return rollout.transitions[-1] if state.generation < rollout.state.generation else None

    result = repo.commit_transition("m", "prod", build, render)
    assert seen == [4, 5]
    assert not result.committed
    assert result.attempts == 2
    assert result.state == rollout.state
    assert len(repo.history("m", "prod")) == len(rollout.transitions)


def test_another_writers_commit_is_kept_under_ours(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    pushed: list[int] = []

    def build(state: ReleaseState) -> Transition | Wait:
        if not pushed:
            pushed.append(1)
            somebody_pushes(tmp_path, "platform/note.yaml", "a: 1\n")
        return start(state, occupant("one"), SPEC, BEGIN)

    result = repo.commit_transition("m", "prod", build, render)
    assert (result.committed, result.attempts) == (True, 2)
    assert repo.read_text("platform/note.yaml") == "a: 1\n"
    assert git("rev-list", "--merges", "main", at=remote) == ""


def test_files_are_looked_at_as_the_remote_has_them_now(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    for text in ("a: 1\n", "a: 2\n"):
        somebody_pushes(tmp_path, "apps/note.yaml", text)
        assert repo.look_at_files(lambda root: (root / "apps/note.yaml").read_text()) == text


def test_a_transition_that_does_not_follow_the_state_is_never_committed(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path)
    rollout = in_canary()
    before = commits(remote)
    with pytest.raises(GitError, match="does not follow"):
        repo.commit_transition("m", "prod", lambda _state: rollout.transitions[-1], render)
    with pytest.raises(GitError, match="transition of m/prod for m/staging"):
        repo.commit_transition("m", "staging", lambda _state: rollout.transitions[0], render)
    assert commits(remote) == before


@pytest.mark.parametrize(
    "path",
    [
        "policy.yaml",
        "models/m/prod/manifests/../../../../policy.yaml",
        "models/other/prod/manifests/a.yaml",
        "/etc/passwd",
        "../outside.yaml",
    ],
)
def test_a_rendered_file_outside_the_models_manifests_is_refused(
    tmp_path: Path, remote: Path, path: str
) -> None:
    repo = repository(tmp_path)
    before = commits(remote)
    with pytest.raises(GitError, match="outside"):
        repo.commit_transition("m", "prod", releasing("one"), lambda _s, _p: {path: "x"})
    assert commits(remote) == before


def test_a_link_in_the_repository_does_not_lead_a_write_out_of_it(
    tmp_path: Path, remote: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    work = tmp_path / "somebody"
    (work / "models/m/prod").mkdir(parents=True)
    (work / "models/m/prod/manifests").symlink_to(outside)
    git("add", "--all", at=work)
    git("commit", "--quiet", "-m", "A link", at=work)
    git("push", "--quiet", "origin", "HEAD:main", at=work)
    with pytest.raises(GitError, match="does not lie in the repository"):
        repository(tmp_path).commit_transition("m", "prod", releasing("one"), render)
    assert list(outside.iterdir()) == []


def test_every_models_state_is_found(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    for model, environment in (("m", "prod"), ("m", "staging"), ("n", "prod")):
        repo.commit_transition(model, environment, releasing("one"), render)
    names = [(s.model, s.environment, s.phase) for s in repo.states()]
    assert names == [
        (m, e, Phase.DEPLOYING) for m, e in (("m", "prod"), ("m", "staging"), ("n", "prod"))
    ]
    assert repository(tmp_path, "new").read_state("unknown", "prod").phase is Phase.EMPTY


def test_a_policy_that_is_none_is_an_error(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    assert repo.read_policy().gates == ("scan", "evaluation", "benchmark")
    somebody_pushes(tmp_path, "policy.yaml", "kind: Policy\ngates: []\n")
    repo.sync()
    with pytest.raises(GitError, match="not a policy"):
        repo.read_policy()


def test_the_policy_can_live_on_a_branch_that_this_writer_does_not_write(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path, policy_branch="protected")
    with pytest.raises(GitError, match="protected"):
        repo.read_policy()
    git("push", "--quiet", "origin", "main:protected", at=tmp_path / "somebody")
    somebody_pushes(tmp_path, "policy.yaml", "kind: Policy\ngates: [none]\n")
    assert repo.read_policy().gates == ("scan", "evaluation", "benchmark")


@pytest.fixture
def daemon(tmp_path: Path, remote: Path) -> Iterator[str]:
    """The remote behind git's own server; the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["git", "daemon", "--export-all", "--enable=receive-pack", "--reuseaddr",
         "--listen=127.0.0.1", f"--port={port}", f"--base-path={tmp_path}"],
        start_new_session=True,
    )  # fmt: skip
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield f"git://127.0.0.1:{port}/remote.git"
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(10)


def test_a_remote_behind_a_network_protocol_is_like_any_other(
    tmp_path: Path, remote: Path, daemon: str
) -> None:
    repo = GitOpsRepository(daemon, tmp_path / "checkout", timeout=20.0)
    rival = repository(tmp_path, "rival")
    repo.commit_transition("m", "prod", releasing("one"), render)
    rival.commit_transition("n", "prod", releasing("one"), render)
    result = repo.commit_transition("o", "prod", releasing("one"), render)
    assert commits(remote)[0] == result.commit
    assert [s.model for s in repo.states()] == ["m", "n", "o"]


def test_commits_are_signed_with_the_ssh_key_that_is_given(tmp_path: Path, remote: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=20
    )
    repo = repository(tmp_path, signing_key=key)
    commit = repo.commit_transition("m", "prod", releasing("one"), render).commit
    signers = tmp_path / "signers"
    signers.write_text(f"lockgate@localhost {key.with_suffix('.pub').read_text()}")
    shown = git(
        *("-c", f"gpg.ssh.allowedSignersFile={signers}", "log", "-1", "--format=%G? %GS", commit),
        at=remote,
    )
    assert shown.strip() == "G lockgate@localhost"
    other = repository(tmp_path, "other", signing_key=tmp_path / "none")
    with pytest.raises(GitError, match="cannot be signed"):
        other.commit_transition("m", "staging", releasing("one"), render)


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fingerprint of a key that a GnuPG of its own holds without a passphrase."""
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not on PATH")
    # Sockets of its agent lie there, and their paths have to be short.
    home = tempfile.mkdtemp(prefix="gpg-", dir="/tmp")
    monkeypatch.setenv("GNUPGHOME", home)
    try:
        made = ("--quick-generate-key", "Lockgate <lockgate@localhost>", "ed25519", "sign", "never")
        for command in (("--passphrase", "", *made), ("--with-colons", "--list-keys")):
            done = subprocess.run(
                ["gpg", "--batch", *command], check=True, timeout=60, capture_output=True, text=True
            )
        [fingerprint] = re.findall(r"^fpr:+([0-9A-F]+):", done.stdout, re.MULTILINE)
        yield fingerprint
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], timeout=20, check=False)
        shutil.rmtree(home, ignore_errors=True)


def test_commits_are_signed_with_the_openpgp_key_that_argo_cds_projects_ask_for(
    tmp_path: Path, remote: Path, keyring: str
) -> None:
    committer = f"openpgp:{keyring}"
    repo = repository(tmp_path, signing_key=committer)
    commit = repo.commit_transition("m", "prod", releasing("one"), render).commit
    key = git("log", "-1", "--format=%G?%GK", commit, at=remote).strip()
    layout = Layout(("prod", "dr"), "argocd", "eks", committer=committer, remote="https://g.test/r")
    root = lay_files(tmp_path / "laid", layout)
    projects = [
        found
        for path in (root / "clusters").rglob("*.yaml")
        for found in yaml.safe_load_all(path.read_text())
        if found["kind"] == "AppProject"
    ]
    assert {p["metadata"]["name"] for p in projects} == {
        "lockgate-cluster", "lockgate-models-prod", "lockgate-platform-prod",
        "lockgate-models-dr", "lockgate-platform-dr",
    }  # fmt: skip
    schema = json.loads((root / "schemas/argoproj.io/appproject_v1alpha1.json").read_text())
    for project in projects:
        jsonschema.Draft202012Validator(schema).validate(project)
        [asked] = project["spec"]["signatureKeys"]
        assert key == f"G{asked['keyID']}", "a good signature, by that very key"
