"""What is wrong elsewhere (with a server's numbers, a predecessor, another model, a look) keeps no release from being driven."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect._internal.concurrency.cancellation import CancelledError

from flows import reconcile
from lockgate.adapters.kube.api import Listing
from lockgate.domain.cluster import MODEL_LABEL, ClusterStatus, ModelStatus, PodStatus, SlotStatus
from lockgate.domain.judge import Judge
from lockgate.domain.release_state import Slot
from lockgate.domain.rollout import Transition, advance
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.spec import CanaryStep, Strategy
from serving.kubernetes_cluster import Gateway, KubernetesCluster
from serving.smoke import DegenerateAnswer
from tasks import step_metrics, watching
from tasks.status import _seen
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.test_watching import watched
from tests.unit.rollout.world import REPLICAS, SPEC, candidate, fit, in_canary, serving_one

EARLY = CanaryStep(weight=5, judge_latency=False, min_seconds=30, max_seconds=300)


def test_numbers_that_the_judge_cannot_take_make_its_driver_blind_and_end_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once such a line is in the trace, every later driver reads it too."""
    state = in_canary(SPEC).state
    start = parse_time(str(state.since)).timestamp()
    clock = SimpleNamespace(time=lambda: start + 30, monotonic=time.monotonic)
    monkeypatch.setattr(step_metrics, "time", clock)
    seen = [s for track in ("baseline", "canary") for s in scrapes(track, start, 30)]
    monkeypatch.setattr(step_metrics.metrics, "scrape", lambda *_, **__: seen)

    def overflows(*_: Any) -> None:
        raise OverflowError("out of range")

    monkeypatch.setattr(Judge, "observe", overflows)
    logging.getLogger("lockgate").propagate = True
    for _ in range(2):
        look = watched(tmp_path, state).look()
        assert look.verdict is None
        clock.time = lambda: start + 500
    assert look.blind_seconds > SPEC.outage_budget_seconds
    assert isinstance(advance(state, look, parse_time(str(state.since))), Transition)
    pages = [r.message for r in caplog.records if r.message.startswith("PAGE")]
    assert pages
    assert all("OverflowError: out of range" in p and "move it away" in p for p in pages)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("Prefect restarts"), CancelledError("lease lost"), ValueError("?")]
)
def test_a_look_that_fails_in_whatever_way_is_not_the_reconcilers_last(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    looks: list[BaseException] = [error, error, KeyboardInterrupt()]

    def under_way(*_: Any) -> None:
        raise looks.pop(0)

    monkeypatch.setattr(reconcile.driving.releases_under_way, "fn", under_way)
    with pytest.raises(KeyboardInterrupt):
        reconcile.watch(0.0)
    assert looks == []


def test_a_dying_predecessor_in_the_slot_is_not_asked_for_the_candidates_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = serving_one()
    release.start("new")
    state = release.state
    assert state.a is not None and state.b is not None
    new = str(state.b.candidate.digest)

    def pod(name: str, of: str, condition: str) -> PodStatus:
        return PodStatus(
            name=name, pid=1, url=f"http://{name}", ready=condition == "running", since=0.0,
            state=condition, candidate=of, template="t", restarts=0, log="",
        )  # fmt: skip

    pods = [pod(f"new-{n}", new, "running") for n in range(REPLICAS)]
    broken = pod("broken", str(candidate("broken").digest), "terminating")
    sizes = {"desired": REPLICAS, "ready": REPLICAS, "updated": REPLICAS, "restarts": 0}
    slots = {
        "a": SlotStatus(slot="a", deployment="d", candidate=str(state.a.candidate.digest), **sizes),
        "b": SlotStatus(slot="b", deployment="d", candidate=new, pods=(*pods, broken), **sizes),
    }
    model = ModelStatus.model_construct(
        slots=slots, route=None, generation=state.generation, successor=None
    )

    def smoke(url: str, _: str) -> None:
        if "broken" in url:
            raise DegenerateAnswer("the same token again and again")

    monkeypatch.setattr(watching, "smoke_generation", smoke)
    watcher = watched(tmp_path, state)
    monkeypatch.setattr(
        watcher, "cluster",
        SimpleNamespace(status=lambda: ClusterStatus.model_construct(models={"m": model})),
    )  # fmt: skip
    found = watcher.look().smoke
    assert found is not None and found.ok


def test_replicas_that_stop_changing_hands_are_not_left_where_nobody_judges_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC.model_copy(
        update={
            "strategy": Strategy.BORROW,
            "control_percent": 5,
            "steps": (EARLY, CanaryStep(weight=25)),
        }
    )
    release = serving_one()
    release.start("new", spec)
    release.after(60).sees()
    for _ in range(2):
        release.after(60).hears("pass")
    release.after(60).sees()
    assert release.state.handing_over
    held = release.after(1000).sees(b=fit(release.state.b, sized=False))
    assert isinstance(held, Transition) and held.state.phase.value == "held"
    assert held.state.resumed is not None
    began = parse_time(held.state.resumed).timestamp()
    clock = SimpleNamespace(time=lambda: began + 5, monotonic=time.monotonic)
    monkeypatch.setattr(step_metrics, "time", clock)
    looks = []
    # Drivers of a moment, as a schedule starts them.
    for seconds in (5, 500, 500):
        clock.time = lambda seconds=seconds: began + seconds
        looks.append(watched(tmp_path, held.state).look())
    assert [look.blind_seconds for look in looks] == [5, 500, 500]
    look = looks[-1]
    back = release.after(500).sees(
        b=fit(release.state.b, sized=False), blind_seconds=look.blind_seconds
    )
    assert isinstance(back, Transition), back
    assert back.state.leaving is not None or back.state.weight == 0


def test_another_models_broken_objects_keep_nobody_from_seeing_this_one() -> None:
    def made(model: str, name: str) -> dict[str, Any]:
        labels = {MODEL_LABEL: model}
        metadata = {"name": name, "labels": labels, "annotations": {}}
        return {"metadata": metadata, "spec": {"rules": []}, "status": {}}

    routes = [made("m", "m"), made("other", "other"), made("other", "a-copy")]

    class Read:
        host = "h"

        def list(self, kind: Any, namespace: str, labels: dict[str, str]) -> Listing:
            wanted = labels.get(MODEL_LABEL)
            of = routes if "route" in str(kind).lower() else []
            items = [r for r in of if wanted in (None, r["metadata"]["labels"][MODEL_LABEL])]
            return Listing(tuple(items), "1")

    reader: Any = Read()
    gateway = Gateway("http://g", None, "c", "")
    status = KubernetesCluster("prod", remote="r", gateway=gateway, reader=reader).status()
    assert list(status.models) == ["m"]
    assert "2 HTTPRoutes" in status.unreadable["other"]


def test_a_model_that_cannot_be_read_is_unobserved_and_the_status_says_why(tmp_path: Path) -> None:
    state = in_canary(SPEC).state
    status = ClusterStatus.model_construct(models={}, unreadable={"m": "2 HTTPRoutes"})
    watcher = watched(tmp_path, state)
    watcher.cluster = SimpleNamespace(
        status=lambda: status, scrape_targets=lambda _: pytest.fail("blind, and asks for metrics")
    )  # type: ignore[assignment]
    assert watcher.look().verdict is None
    assert _seen(status, "m", Slot.A) == "2 HTTPRoutes"
