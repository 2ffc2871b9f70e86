"""Many processes write one repository at once, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lockgate.adapters.git import GitOpsRepository
from lockgate.domain.release_state import Phase
from lockgate.domain.rollout import Transition, advance, start
from tests.integration.git.repositories import commits, git, make_remote, render, repository
from tests.unit.rollout.world import BEGIN, SPEC, look, occupant, verdict

WRITERS = 16
SPAWN = multiprocessing.get_context("spawn")


def write_four(root: str, checkout: str, model: str) -> None:
    """One writer: four transitions of its own model."""
    repo = GitOpsRepository(f"{root}/remote.git", Path(root, checkout), timeout=60.0)
    who = occupant(model)
    steps = [
        lambda state: start(state, who, SPEC, BEGIN),
        lambda state: advance(state, look(state), BEGIN),
        lambda state: start(state, occupant(f"{model}-b"), SPEC, BEGIN),
        lambda state: advance(state, look(state), BEGIN),
    ]
    for step in steps:
        assert repo.commit_transition(model, "prod", step, render).committed


def raise_once(root: str, checkout: str, model: str) -> None:
    """One of many drivers that all carry out the same observation of the same release."""
    repo = GitOpsRepository(f"{root}/remote.git", Path(root, checkout), timeout=60.0)
    seen = look(repo.read_state(model, "prod"), verdict=verdict("fail"))
    repo.commit_transition(model, "prod", lambda state: advance(state, seen, BEGIN), render)


def run_all(target: object, arguments: list[tuple[str, ...]]) -> None:
    processes = [SPAWN.Process(target=target, args=a) for a in arguments]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [p.exitcode for p in processes] == [0] * len(processes)


@pytest.mark.parametrize("own_checkouts", [True, False])
def test_many_processes_lose_nothing(tmp_path: Path, own_checkouts: bool) -> None:
    remote = make_remote(tmp_path)
    begin = commits(remote)
    writers = WRITERS if own_checkouts else WRITERS // 2
    run_all(
        write_four,
        [
            (str(tmp_path), f"checkout-{n}" if own_checkouts else "checkout", f"m{n}")
            for n in range(writers)
        ],
    )
    assert len(commits(remote)) == 4 * writers + len(begin)
    assert git("rev-list", "--merges", "main", at=remote) == ""
    states = repository(tmp_path, "reader").states()
    assert [s.phase for s in states] == [Phase.CANARY] * writers
    assert all(s.generation == 4 for s in states)
    git("fsck", "--strict", at=remote)


def write_one(root: str, checkout: str, model: str) -> None:
    repo = GitOpsRepository(f"{root}/remote.git", Path(root, checkout), timeout=120.0)
    result = repo.commit_transition(
        model, "prod", lambda state: start(state, occupant(model), SPEC, BEGIN), render
    )
    assert result.committed


def test_sixty_four_processes_on_eight_machines_lose_nothing(tmp_path: Path) -> None:
    """Those of one machine share a checkout and queue; machines race at the remote."""
    remote = make_remote(tmp_path)
    begin = commits(remote)
    # Forked: importing everything sixty-four times would be most of the test.
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=write_one, args=(str(tmp_path), f"machine-{n % 8}", f"m{n}"))
        for n in range(64)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [p.exitcode for p in processes] == [0] * 64
    made = commits(remote)[: -len(begin)]
    assert len(made) == 64
    assert git("rev-list", "--merges", "main", at=remote) == ""
    assert sorted(s.model for s in repository(tmp_path, "reader").states()) == sorted(
        f"m{n}" for n in range(64)
    )
    for commit in made:
        changed = git("show", "--name-only", "--format=", commit, at=remote).split()
        assert len(changed) == 2, "no commit is empty, and none holds another's change"


def test_the_same_observation_by_many_drivers_is_one_commit(tmp_path: Path) -> None:
    remote = make_remote(tmp_path)
    write_four(str(tmp_path), "first", "m")
    before = len(commits(remote))
    run_all(raise_once, [(str(tmp_path), f"checkout-{n}", "m") for n in range(6)])
    assert len(commits(remote)) == before + 1
    assert repository(tmp_path, "reader").read_state("m", "prod").phase is Phase.DRAINING


def write_until_killed(root: str) -> None:
    repo = GitOpsRepository(f"{root}/remote.git", Path(root, "victim"), timeout=60.0)
    n = 0
    while True:
        n += 1
        repo.commit_transition(
            f"k{n}", "prod", lambda state: start(state, occupant("one"), SPEC, BEGIN), render
        )


def test_a_writer_killed_anywhere_leaves_whole_transitions_and_a_usable_checkout(
    tmp_path: Path,
) -> None:
    remote = make_remote(tmp_path)
    for n in range(6):
        victim = SPAWN.Process(target=write_until_killed, args=(str(tmp_path),))
        victim.start()
        assert victim.pid is not None
        began = len(commits(remote))
        deadline = time.monotonic() + 60
        while len(commits(remote)) < began + 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.013 * n)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(10)
    repo = repository(tmp_path, "victim")
    result = repo.commit_transition(
        "after", "prod", lambda state: start(state, occupant("one"), SPEC, BEGIN), render
    )
    assert isinstance(result.transition, Transition)
    assert len(repo.states()) == len(commits(remote)) - 1
    for commit in commits(remote)[:-1]:
        changed = git("show", "--name-only", "--format=", commit, at=remote).split()
        assert len(changed) == 2, "state and manifests are one commit"
