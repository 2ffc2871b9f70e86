from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Slot
from serving.local.envoy_config import effective_weights
from serving.local.slots import PodView, plan_pods

OLD, NEW = Digest.of_bytes(b"old"), Digest.of_bytes(b"new")


def test_an_unchanged_template_restarts_nothing() -> None:
    pods = [PodView(f"p{n}", NEW, True, False, n) for n in range(3)]
    plan = plan_pods(NEW, 3, pods, max_surge=0, max_unavailable=1)
    assert (plan.create, plan.terminate) == (0, ())


def test_without_surge_the_old_pod_has_to_be_gone_before_the_new_one_starts() -> None:
    old = PodView("old", OLD, True, False, 0)
    assert plan_pods(NEW, 1, [old], max_surge=0, max_unavailable=1).terminate == ("old",)
    leaving = PodView("old", OLD, False, True, 0)
    assert plan_pods(NEW, 1, [leaving], max_surge=0, max_unavailable=1).create == 0
    assert plan_pods(NEW, 1, [], max_surge=0, max_unavailable=1).create == 1


pod_states = st.tuples(st.sampled_from([OLD, NEW]), st.booleans(), st.booleans())


@given(
    replicas=st.integers(1, 4),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    states=st.lists(pod_states, max_size=6),
)
def test_every_rolling_update_ends_with_the_wanted_pods_and_keeps_to_its_limits(
    replicas: int, surge: int, unavailable: int, states: list[tuple[Digest, bool, bool]]
) -> None:
    pods = {
        f"p{n}": PodView(f"p{n}", template, ready and not terminating, terminating, n)
        for n, (template, ready, terminating) in enumerate(states)
    }
    limit = max(replicas + surge, len(pods))
    for step in range(40):
        plan = plan_pods(
            NEW, replicas, list(pods.values()), max_surge=surge, max_unavailable=unavailable
        )
        before = sum(p.ready for p in pods.values())
        stopped = [pods[name] for name in plan.terminate]
        if before >= replicas:
            allowed = max(unavailable, 0 if surge else 1) + max(0, before - replicas)
            assert sum(p.ready for p in stopped) <= allowed
        pods = {name: p for name, p in pods.items() if not p.terminating}
        for p in stopped:
            pods[p.name] = PodView(p.name, p.template, False, True, p.created)
        for n in range(plan.create):
            name = f"n{step}-{n}"
            pods[name] = PodView(name, NEW, False, False, 100 + step)
        assert len(pods) <= limit
        pods = {
            name: PodView(p.name, p.template, not p.terminating, p.terminating, p.created)
            for name, p in pods.items()
        }
    assert [p.template for p in pods.values()] == [NEW] * replicas


@given(
    st.dictionaries(st.sampled_from(list(Slot)), st.integers(0, 100)),
    st.sets(st.sampled_from(list(Slot))),
    st.lists(st.sampled_from(list(Slot)), unique=True),
)
def test_traffic_moves_only_to_ready_slots_that_may_take_it(
    weights: dict[Slot, int], ready: set[Slot], failover: list[Slot]
) -> None:
    effective = effective_weights(weights, ready, failover)
    wanted = {slot for slot, weight in weights.items() if weight}
    if wanted <= ready or not wanted:
        assert effective == {slot: weights[slot] for slot in wanted}
    elif wanted & ready:
        assert set(effective) == wanted & ready
    elif set(failover) & ready:
        assert set(effective) == set(failover) & ready
    else:
        assert set(effective) == wanted
