"""A release by hand beside another one: refused before any work, unless it is the one that is under way; real Git and store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters import sources
from lockgate.adapters.oci.package import push_model
from lockgate.domain import gitops
from lockgate.domain.candidates import Candidate
from lockgate.domain.release_state import Phase, ReleaseState, Slot
from lockgate.domain.spec import ReleaseSpec
from lockgate.domain.steps import StoredModel
from lockgate.errors import Refused
from lockgate.settings import Settings
from tasks import turns
from tasks.intake import fetch_key, parsed_source
from tasks.workspace import Workspace
from tests.integration.git.repositories import make_remote, somebody_pushes
from tests.integration.tracking.test_looking import RELEASE
from tests.unit.rollout.world import SPEC, occupant


class World:
    """Somebody's release of a model is in its canary; the model's source is a directory."""

    def __init__(self, root: Path) -> None:
        make_remote(root)
        self.root, self.workspace = root, Workspace(Settings())
        source = root / "model"
        source.mkdir()
        (source / "config.json").write_text("{}")
        self.spec = ReleaseSpec.model_validate(
            {**RELEASE, "source": str(source), "environment": "prod"}
        )

    def has(self, phase: Phase, candidate: Candidate | None = None) -> None:
        taken: dict[str, Any] = {"a": occupant("stable"), "stable": Slot.A, "canary": SPEC}
        if phase is not Phase.STABLE:
            new = occupant("new")
            new = new.model_copy(update={"candidate": candidate}) if candidate else new
            taken["b"] = new
        state = ReleaseState(model="m", environment="prod", phase=phase, **taken)
        path = "models/m/prod/release.yaml"
        somebody_pushes(self.root, path, gitops.dump_yaml(state.to_data()))

    def made(self) -> Candidate:
        """The spec's own candidate, by a run that has ended meanwhile."""
        workspace, spec = self.workspace, self.spec
        directory = Path(spec.source)
        snapshot = sources.read_snapshot(directory)
        image = push_model(workspace.store, "lockgate.local/models/m", directory, snapshot, labels={})  # fmt: skip
        stored = StoredModel(snapshot=snapshot.digest, size=2, image=image)
        revision = sources.resolve(parsed_source(spec.source))
        key = fetch_key(workspace, spec.source, revision, spec.model)
        done = {"key": key.to_data(), "result": stored.to_data()}
        workspace.records.record(key.content_digest(), done)
        runtime = workspace.local_runtime(spec.serving.engine)
        return Candidate(model=image, runtime=runtime, serving=spec.serving)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    # This remote has no bases.
    monkeypatch.setattr(turns, "with_bases", lambda workspace, model, env, candidate: candidate)
    return World(tmp_path)


@pytest.mark.parametrize("phase", [Phase.DEPLOYING, Phase.BAKING, Phase.DRAINING])
def test_beside_another_release_nothing_is_begun_and_it_says_what_to_do(
    world: World, phase: Phase
) -> None:
    world.has(phase)
    with pytest.raises(Refused, match="is under way in m/prod") as refused:
        turns.refuse_beside_another(world.workspace, world.spec)
    assert "--wait" in str(refused.value.hint)
    # Its own candidate was made before, but another one is under way.
    world.made()
    with pytest.raises(Refused):
        turns.refuse_beside_another(world.workspace, world.spec)


def test_a_release_that_was_killed_goes_on_with_its_own_candidate(world: World) -> None:
    world.has(Phase.DEPLOYING, world.made())
    turns.refuse_beside_another(world.workspace, world.spec)


def test_where_nothing_is_under_way_a_release_begins(world: World) -> None:
    turns.refuse_beside_another(world.workspace, world.spec)
    world.has(Phase.STABLE)
    turns.refuse_beside_another(world.workspace, world.spec)
