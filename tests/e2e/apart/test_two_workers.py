"""A release that one worker began is finished by another, killed twice on the way, with the same digests and no doubled commit."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.adapters.git import GitOpsRepository
from lockgate.adapters.oci import open_store
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.release_state import Outcome, Phase, ReleaseState
from lockgate.environments import REPOSITORY
from tests.e2e.apart.two_workers import Site, kill, running_postgres, running_prefect
from tests.e2e.e2e_site import QUICK, asked, prefect, wait_until
from tests.integration.oci.conftest import RunningRegistry

BASE = REPOSITORY / "lockgate" / "demo" / "base.yaml"


@pytest.fixture
def site(
    docker_registry: Path,
    postgresql: Path,
    serving_python: Path,
    kubectl: Path,
    tmp_path: Path,
) -> Iterator[Site]:
    (tmp_path / "registry").mkdir()
    registry = RunningRegistry(docker_registry, tmp_path / "registry")
    registry.start()
    try:
        with (
            running_postgres(postgresql) as database,
            running_prefect(database, tmp_path / "server") as url,
        ):
            found = Site(tmp_path, registry.host, url)
            try:
                found.begin()
                yield found
            finally:
                found.end()
    finally:
        registry.stop()


def spec(model: Path) -> dict[str, Any]:
    data = yaml.safe_load(BASE.read_text())
    for key, value in QUICK.items():
        data[key] = {**data[key], **value}
    return {**data, "source": f"dir:{model}"}


@pytest.mark.timeout(2400)
def test_a_release_outlives_the_workers_that_began_it(site: Site, demo_model: Path) -> None:
    repository = GitOpsRepository(site.settings("x").git_remote, site.root / "checkout")
    environment = site.environment("first")
    place = site.root / "deploying"
    place.mkdir()
    shutil.copy(REPOSITORY / "prefect.yaml", place)
    prefect(environment, "work-pool", "create", "lockgate", "--type", "process", cwd=place)
    prefect(environment, "deploy", "--all", cwd=place)
    request = json.dumps({"request": {"spec": spec(demo_model), "requested_by": "test"}})

    def state() -> ReleaseState:
        repository.sync()
        return repository.read_state("smollm2", "local")

    def history() -> list[HistoryEntry]:
        repository.sync()
        entries = repository.history("smollm2", "local")
        return [entry for entry in entries[::-1] if entry.release is not None]

    def release() -> None:
        prefect(environment, "deployment", "run", "release/release", "--params", request, cwd=place)

    def measuring() -> bool:
        return any((site.root / "first" / "logs").glob("measure-*/vllm.log"))

    def committed() -> bool:
        return state().generation > 0

    def reconciled() -> bool:
        if state().phase is Phase.STABLE:
            return True
        # One that meets the lease of the killed driver ends at once, and says so.
        prefect(environment, "deployment", "run", "reconcile/reconcile", cwd=place)
        time.sleep(15)
        return False

    def released() -> bool:
        """Whether a run of the release came to its end: those of the killed workers never do."""
        (flow,) = [
            found["id"] for found in asked(environment, "flows") if found["name"] == "release"
        ]
        runs = [run for run in asked(environment, "flow_runs") if run["flow_id"] == flow]
        return any(run["state_type"] == "COMPLETED" for run in runs)

    first = site.worker("first")
    release()
    wait_until(measuring, 900, f"the first worker measures (log: {site.log('first')})")
    kill(first)
    images = tags_of_models(site)
    assert len(images) == 1 and not committed()
    # The first one's machine is gone, and with it what its workspace held.
    shutil.rmtree(site.root / "first" / "snapshots")
    second = site.worker("second")
    release()
    wait_until(committed, 1200, f"the second worker commits (log: {site.log('second')})")
    kill(second)
    (occupant,) = [o for o in (state().a, state().b) if o is not None]
    assert state().phase is Phase.DEPLOYING
    # The third one is the first, come back, and nobody asks it for this release: reconcile finds it in Git. (Asked for here, since
    # the server's scheduler would only ask once a minute.)
    third = site.worker("third")
    try:
        wait_until(
            lambda: state().phase is Phase.STABLE, 900, f"it ends (log: {site.log('third')})"
        )
        before = repository.sync()
        release()
        wait_until(released, 600, f"the release is found done (log: {site.log('third')})")
    finally:
        kill(third)
    ended = state()
    assert ended.last is not None and ended.last.outcome is Outcome.PROMOTED
    # The same bytes gave the same image, whoever packaged them, and the same candidate in every commit.
    assert tags_of_models(site) == images
    assert {entry.trailers["Candidate"] for entry in history()} == {occupant.candidate.digest}
    assert {entry.release for entry in history()} == {occupant.release}
    generations = [int(entry.trailers["Lockgate-Generation"]) for entry in history()]
    assert generations == list(range(1, ended.generation + 1))
    assert repository.sync() == before
    print(f"generations {generations}, model image {occupant.candidate.model.digest}")


def tags_of_models(site: Site) -> dict[str, str]:
    """Every tagged image of the model in the registry, with its digest."""
    store = open_store(site.store)
    repository = site.settings("x").model_repository("smollm2")
    tags = [tag for tag in store.tags(repository) if not tag.startswith("sha256-")]
    return {tag: str(store.resolve(repository, tag)) for tag in tags}
