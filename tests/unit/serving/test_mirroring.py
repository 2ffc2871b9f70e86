"""A mirror step as a route, and as the embedded gateway reads it."""

from __future__ import annotations

from typing import Any

from lockgate.domain.cluster import SLOT_LABEL
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.domain.spec import CanaryStep
from serving.local.desired import read_model
from serving.local.envoy_config import GatewayModel, route_configuration
from serving.manifests.routes import failover_slots, routed
from tests.unit.rollout.world import SPEC, in_canary

MIRROR = CanaryStep(weight=0, traffic="mirror", mirror_percent=40)


def mirroring() -> ReleaseState:
    return in_canary(SPEC.model_copy(update={"steps": (MIRROR, *SPEC.steps)})).state


def objects(state: ReleaseState) -> list[dict[str, Any]]:
    services = [
        {
            "kind": "Service",
            "metadata": {"name": f"m-{slot}"},
            "spec": {"selector": {SLOT_LABEL: slot.value}},
        }
        for slot in Slot
    ]
    route = {"kind": "HTTPRoute", "metadata": {"name": "m"}, "spec": {}}
    return [*services, routed(route, state)]


def test_stable_answers_everybody_and_the_candidate_gets_copies_only() -> None:
    state = mirroring()
    route = read_model("m", objects(state), state).route
    assert route.weights() == {Slot.A: 100, Slot.B: 0}
    (weighted,) = [rule for rule in route.rules if not rule.headers]
    assert weighted.mirrors == ((Slot.B, 40.0),)
    assert failover_slots(state) == (Slot.A,)
    model = GatewayModel("m", 1, route, dict.fromkeys(Slot, (("127.0.0.1", 2),)))
    actions = [r["route"] for r in route_configuration(model)["virtual_hosts"][0]["routes"][:-1]]
    assert [c["name"] for c in actions[-1]["weighted_clusters"]["clusters"]] == ["m-a"]
    assert model.routed_to(Slot.A) == "m-a", "a candidate that only gets copies never takes over"
    (policy,) = actions[-1]["request_mirror_policies"]
    assert policy["cluster"] == "m-b"
    assert policy["runtime_fraction"]["default_value"]["numerator"] == 400_000


def test_requests_that_name_a_slot_are_not_copied() -> None:
    state = mirroring()
    route = read_model("m", objects(state), state).route
    assert all(not rule.mirrors for rule in route.rules if rule.headers)


def test_the_next_step_mirrors_nothing() -> None:
    mirror = in_canary(SPEC.model_copy(update={"steps": (MIRROR, *SPEC.steps)}))
    mirror.after(60).hears("pass")
    route = read_model("m", objects(mirror.state), mirror.state).route
    assert all(not rule.mirrors for rule in route.rules)
    assert route.weights() == {Slot.A: 95, Slot.B: 5}
    model = GatewayModel("m", 1, route, dict.fromkeys(Slot, (("127.0.0.1", 2),)))
    *forced, weighted, _ = route_configuration(model)["virtual_hosts"][0]["routes"]
    by_route = [{c["name"] for c in r["route"]["weighted_clusters"]["clusters"]} for r in forced]
    assert by_route == [{"m-a"}, {"m-b"}], "who asks for a slot is answered by no other"
    names = {c["name"] for c in weighted["route"]["weighted_clusters"]["clusters"]}
    assert names == {"m-a+b", "m-b+a"}
