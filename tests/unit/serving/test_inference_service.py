"""An InferenceService driven from commit to commit, against KServe and Knative as their source has them.

State machine, rendering and observation are the real ones. The controllers, the agent and the driver take their turns in any
order, each as slowly as it likes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.kube.inference_service import (
    ACCOUNTS,
    INFERENCE_SERVICES,
)
from lockgate.domain.cluster import lagging
from lockgate.domain.release_state import Outcome, Phase
from lockgate.domain.rollout import (
    TransitionKind,
)
from tests.unit.serving.inference_world import (
    FATES,
    World,
    at,
    bases,
    in_memory,
    occupant,
)

SEEDS = 5


@pytest.fixture(scope="module")
def slots_of(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> Any:
    return bases(tmp_path_factory.mktemp("repo"), kubectl)


def test_releases_are_promoted_and_rolled_back_to_the_end(slots_of: Any) -> None:
    world = in_memory(slots_of)
    world.pace = 45
    stable = None
    for number, fate in enumerate(("promoted", *FATES, "promoted")):
        begin = len(world.kinds)
        world.release(f"r{number}", fate)
        assert world.rounds(80), (fate, world.state.phase, world.kinds[begin:])
        stable = occupant(f"r{number}") if fate == "promoted" else stable
        assert stable is not None
        assert world.state.phase is Phase.STABLE
        assert world.knative.shares == {str(stable.candidate.digest): 100}
        assert (TransitionKind.RESTORE in world.kinds[begin:]) is (fate != "promoted"), fate


@pytest.mark.parametrize("seed", range(SEEDS))
def test_in_whatever_order_all_take_their_turns_no_candidate_gets_more_than_is_committed_and_no_rejected_one_anything(
    slots_of: Any, seed: int
) -> None:
    chance, world = random.Random(seed), in_memory(slots_of)
    for number, fate in enumerate(("promoted", *chance.choices(FATES, k=3))):
        world.release(f"r{number}", fate)
        weights = [chance.random() ** 2 for _ in world.actions]
        for action in chance.choices([*world.actions], weights, k=chance.choice((0, 60, 120))):
            world.turn(action)
        assert world.rounds(160), (fate, world.state.phase, world.kinds)
        if world.state.stable is not None:
            assert world.knative.shares == {at(world.state, world.state.stable): 100}


def test_a_share_dropped_in_the_commit_that_puts_stable_back_would_send_everything_to_the_rejected_one(
    slots_of: Any,
) -> None:
    """What the commit between them is for; that these rules of KServe's show it."""
    world = in_memory(slots_of)
    world.release("r0", "promoted")
    assert world.rounds(80)
    world.release("r1", "fails")
    while world.state.phase is not Phase.DRAINING:
        assert not world.rounds(1)
    world.state = world.state.model_copy(update={"restoring": None})
    with pytest.raises(AssertionError, match="100% on a rejected candidate"):
        world.rounds(80)


def test_where_kserve_takes_stable_for_rolled_back_nobody_meets_the_candidate_and_stable_comes_back(
    slots_of: Any,
) -> None:
    """Knative's route was quicker than its configuration: to KServe nothing newer exists yet, and all goes to what is before it."""
    world = in_memory(slots_of)
    for name in ("r0", "r1"):
        world.release(name, "promoted")
        assert world.rounds(80)
    world.release("r2", "promoted")
    for action in ("fetch", "account", "apply", "kserve", "service", "route", "service"):
        world.turn(action)
    for action in ("kserve", "kserve", "service", "route"):
        world.turn(action)
    before, stable = (str(occupant(name).candidate.digest) for name in ("r0", "r1"))
    assert world.knative.shares == {before: 100}
    assert world.rounds(160), (world.state.phase, world.kinds)
    assert TransitionKind.RAISE not in world.kinds[-4:]
    assert world.state.last is not None
    assert (world.state.last.release, world.state.last.outcome) == ("r2", Outcome.ABORTED)
    assert world.knative.shares == {stable: 100}


def _without_account(world: World) -> None:
    world.knative.store.delete(ACCOUNTS, "smol")


def _older_share(world: World) -> None:
    (service,) = world.knative.store.items(INFERENCE_SERVICES)
    service["spec"]["predictor"]["canaryTrafficPercent"] = 0
    world.change(INFERENCE_SERVICES, spec=service["spec"])


def _reported(**changes: Any) -> Callable[[World], None]:
    def change(world: World) -> None:
        (service,) = world.knative.store.items(INFERENCE_SERVICES)
        service["status"]["components"]["predictor"] |= changes
        world.change(INFERENCE_SERVICES, status=service["status"])

    return change


def _unrouted(world: World) -> None:
    (service,) = world.knative.store.items(INFERENCE_SERVICES)
    service["status"]["conditions"] = []
    world.change(INFERENCE_SERVICES, status=service["status"])


@pytest.mark.parametrize(
    ("lags", "said"),
    [
        (_without_account, "no ServiceAccount smol says"),
        (_older_share, "of another commit than its ServiceAccount"),
        (_reported(latestCreatedRevision="smol-predictor-00001"), "not looked at the newest"),
        (_unrouted, "is not routed"),
        (_reported(traffic=[]), "routed with the weights {}, not {'a': 95, 'b': 5}"),
    ],
)
def test_one_thing_that_lags_behind_keeps_a_commit_from_being_in_force_and_is_named(
    slots_of: Any, lags: Callable[[World], None], said: str
) -> None:
    world = in_memory(slots_of)
    world.release("r0", "promoted")
    assert world.rounds(80)
    world.release("r1", "promoted")
    while world.state.weight != 5:
        world.rounds(1)
    for action in [a for a in world.actions if a != "drive"] * 5:
        world.turn(action)
    seen = world.status()
    assert seen is not None
    assert lagging(seen, world.state) == ()
    assert seen.generation == world.state.generation
    assert {s: (f.updated, f.desired) for s, f in seen.slots.items()} == {"a": (1, 1), "b": (1, 1)}
    lags(world)
    assert said in "; ".join(lagging(world.status(), world.state))
