"""A remote that is away, slow or unwilling, and a checkout that is broken: an error that says so, in bounded time."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.adapters.git import GitOpsRepository
from lockgate.domain.release_state import Phase
from lockgate.errors import GitError, PushRejected
from tests.integration.git.repositories import (
    commits,
    git,
    make_remote,
    releasing,
    render,
    repository,
    somebody_pushes,
)

PATIENCE = 60.0
"""Seconds after which a call counts as hanging. All time limits given are far below it."""


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return make_remote(tmp_path)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []
        done = threading.Event()

        def take() -> None:
            server.settimeout(0.2)
            while not done.is_set():
                try:
                    taken.append(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=take)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()
        for connection in taken:
            connection.close()


def hook(remote: Path, name: str, text: str) -> None:
    path = remote / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_remote_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    with pytest.raises(GitError, match=r"remote\.git") as caught:
        repo.sync()
    assert caught.value.hint is not None


def test_a_remote_without_the_branch_says_what_to_do(tmp_path: Path) -> None:
    git("init", "--quiet", "--bare", str(tmp_path / "remote.git"), at=tmp_path)
    with pytest.raises(GitError, match="no branch main") as caught:
        repository(tmp_path).sync()
    assert "lockgate init" in str(caught.value.hint)


def test_a_remote_that_goes_away_between_fetch_and_push_leaves_nothing(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path)
    repo.sync()
    away = tmp_path / "away.git"

    def losing(state, root):  # type: ignore[no-untyped-def]
        remote.rename(away)
        return render(state, root)

    with pytest.raises(GitError):
        repo.commit_transition("m", "prod", releasing("one"), losing)
    away.rename(remote)
    assert len(commits(remote)) == 1
    assert repo.commit_transition("m", "prod", releasing("one"), render).committed


def test_a_remote_that_never_answers_is_given_up(tmp_path: Path, silent_server: int) -> None:
    began = time.monotonic()
    for scheme in ("http", "git"):
        repo = GitOpsRepository(
            f"{scheme}://user:secret@127.0.0.1:{silent_server}/x.git"
            if scheme == "http"
            else f"git://127.0.0.1:{silent_server}/x.git",
            tmp_path / scheme,
            timeout=1.0,
        )
        with pytest.raises(GitError) as caught:
            repo.sync()
        assert "secret" not in str(caught.value)
    assert time.monotonic() - began < PATIENCE


def test_a_slow_push_is_given_up_and_one_that_landed_after_all_is_found(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path, timeout=6.0)
    repo.sync()
    hook(remote, "pre-receive", "exec sleep 300")
    began = time.monotonic()
    with pytest.raises(GitError, match="did not end within 6 s"):
        repo.commit_transition("m", "prod", releasing("one"), render)
    assert time.monotonic() - began < PATIENCE
    assert len(commits(remote)) == 1
    # Now the answer is lost instead: the commit is in, and the pusher does not hear of it.
    (remote / "hooks/pre-receive").unlink()
    hook(remote, "post-receive", "exec sleep 300")
    result = repo.commit_transition("m", "prod", releasing("one"), render)
    assert result.committed
    assert commits(remote)[0] == result.commit
    assert len(commits(remote)) == 2


def test_a_push_that_the_remote_refuses_is_not_tried_again(tmp_path: Path, remote: Path) -> None:
    counter = tmp_path / "asked"
    hook(remote, "pre-receive", f"echo x >> {counter}; echo 'branch is protected' >&2; exit 1")
    with pytest.raises(GitError, match="branch is protected") as caught:
        repository(tmp_path).commit_transition("m", "prod", releasing("one"), render)
    assert not isinstance(caught.value, PushRejected)
    assert counter.read_text() == "x\n"
    assert len(commits(remote)) == 1


def test_who_is_always_overtaken_gives_up_in_the_end(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path, retry_seconds=1.0)
    counter = iter(range(1000))

    def build(state):  # type: ignore[no-untyped-def]
        somebody_pushes(tmp_path, "platform/note.yaml", f"n: {next(counter)}\n")
        return releasing("one")(state)

    with pytest.raises(PushRejected):
        repo.commit_transition("m", "prod", build, render)
    assert repo.read_state("m", "prod").phase is Phase.EMPTY


def test_what_the_remote_has_is_never_overwritten(tmp_path: Path, remote: Path) -> None:
    """Even by a writer whose checkout is behind: every commit of others stays in the history."""
    repo = repository(tmp_path)
    repo.sync()
    for n in range(3):
        somebody_pushes(tmp_path, f"platform/{n}.yaml", "a: 1\n")
    theirs = set(commits(remote))
    repo.commit_transition("m", "prod", releasing("one"), render)
    assert theirs < set(commits(remote))


def damage_objects(checkout: Path) -> None:
    for path in (checkout / ".git/objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"")


def damage_index(checkout: Path) -> None:
    (checkout / ".git/index").write_bytes(b"not an index")


def leave_locks(checkout: Path) -> None:
    for name in ("index.lock", "HEAD.lock", "refs/remotes/origin/main.lock"):
        (checkout / ".git" / name).touch()


def lose_git(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")


def lose_half(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git/objects")


def lose_head(checkout: Path) -> None:
    (checkout / ".git/HEAD").write_text("")


def empty_refs(checkout: Path) -> None:
    (checkout / ".git/refs/remotes/origin/main").write_text("")


def work_tree_in_disorder(checkout: Path) -> None:
    (checkout / "policy.yaml").write_text("kind: Nothing\n")
    (checkout / "models/m").mkdir(parents=True, exist_ok=True)
    (checkout / "models/m/prod").write_text("a file where a directory should be")


@pytest.mark.parametrize(
    "damage",
    [
        damage_objects,
        damage_index,
        leave_locks,
        lose_git,
        lose_half,
        lose_head,
        empty_refs,
        work_tree_in_disorder,
    ],
)
def test_a_broken_checkout_is_made_anew(tmp_path: Path, remote: Path, damage) -> None:  # type: ignore[no-untyped-def]
    # The workspace lies in somebody's own repository, which must not be taken for the checkout.
    git("init", "--quiet", at=tmp_path)
    (tmp_path / "mine.txt").write_text("precious")
    repo = repository(tmp_path)
    repo.commit_transition("m", "staging", releasing("one"), render)
    damage(tmp_path / "checkout")
    assert repo.read_policy().kind == "Policy"
    assert repo.commit_transition("m", "prod", releasing("one"), render).committed
    changed = git("show", "--name-only", "--format=", "main", at=remote).split()
    assert changed == ["models/m/prod/manifests/a.yaml", "models/m/prod/release.yaml"]
    assert len(repo.states()) == 2
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_checkout_in_use_is_waited_for_in_bounded_time(tmp_path: Path, remote: Path) -> None:
    import fcntl

    repo = repository(tmp_path, timeout=0.5)
    lock = os.open(tmp_path / "checkout.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    began = time.monotonic()
    with pytest.raises(GitError, match="in use"):
        repo.sync()
    assert time.monotonic() - began < PATIENCE
    os.close(lock)


def test_a_history_rewritten_by_somebody_is_followed(tmp_path: Path, remote: Path) -> None:
    repo = repository(tmp_path)
    repo.commit_transition("m", "prod", releasing("one"), render)
    git("update-ref", "refs/heads/main", commits(remote)[-1], at=remote)
    repo.sync()
    assert repo.read_state("m", "prod").phase is Phase.EMPTY


def test_a_state_that_cannot_be_read_stands_in_no_other_models_way(
    tmp_path: Path, remote: Path
) -> None:
    repo = repository(tmp_path)
    repo.commit_transition("good", "prod", releasing("one"), render)
    somebody_pushes(tmp_path, "models/bad/prod/release.yaml", "phase: whatever\n")
    somebody_pushes(tmp_path, "models/NotALabel/prod/release.yaml", "phase: whatever\n")
    repo.sync()
    with pytest.raises(GitError, match="models/bad/prod"):
        repo.states()
    told: list[str] = []
    states = repo.states(lambda path, _error: told.append(path))
    assert [s.model for s in states] == ["good"]
    assert told == ["models/bad/prod/release.yaml"]
    with pytest.raises(GitError, match="models/bad/prod"):
        repo.commit_transition("bad", "prod", releasing("one"), render)
