"""What the engine that a spec names cannot do of its release: said by the plan, refused before anything is made."""

from __future__ import annotations

from prefect.cache_policies import NO_CACHE

from lockgate.domain.engine_support import lacking, limits, needed
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.spec import ReleaseSpec
from lockgate.errors import UsageError
from lockgate.settings import Settings
from serving.engines.registry import engine
from tasks.retries import TRANSIENT
from tasks.steps import step
from tasks.workspace import Workspace


def obstacles(spec: ReleaseSpec, state: ReleaseState, settings: Settings) -> tuple[str, ...]:
    """Why the engine cannot carry this release out; empty where it can."""
    name = spec.serving.engine
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is not None and stable.candidate.serving.engine != name:
        return (
            f"{spec.model} is served by engine {stable.candidate.serving.engine}, and two engines share no route: release "
            "the other one under a model name of its own",
        )
    wanted = needed(spec.canary, first_release=stable is None, embedded=settings.cluster == "local")
    return tuple(f"engine {name}: {why}" for why in lacking(engine(name).lacks, wanted))


def known_limits(spec: ReleaseSpec, state: ReleaseState, settings: Settings) -> tuple[str, ...]:
    """What the engine does not do although this release does not need it."""
    wanted = needed(
        spec.canary, first_release=state.stable is None, embedded=settings.cluster == "local"
    )
    return limits(engine(spec.serving.engine).lacks, wanted)


@step(name="check-engine", cache_policy=NO_CACHE, **TRANSIENT)
def check_engine(spec: ReleaseSpec) -> None:
    """Refuse a release that its engine cannot carry out before anything is fetched. Raises `UsageError`."""
    workspace = Workspace.current()
    workspace.gitops.sync()
    state = workspace.gitops.read_state(spec.model, spec.environment)
    found = obstacles(spec, state, workspace.settings)
    if found:
        raise UsageError("; ".join(found), hint="change the canary, or the engine")
