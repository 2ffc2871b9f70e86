"""An InferenceService driven from commit to commit, against KServe and Knative as their source has them.

State machine, rendering and observation are the real ones. The controllers, the agent and the driver take their turns in any
order, each as slowly as it likes.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lockgate.adapters.kube.inference_service import (
    ACCOUNTS,
    INFERENCE_SERVICES,
    REVISIONS,
    model_status,
)
from lockgate.adapters.kube.kserve import LLM_SERVICES
from lockgate.adapters.kube.models import GROUPS, PODS
from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import ClusterStatus, ModelStatus, lagging
from lockgate.domain.digests import Digest
from lockgate.domain.gitops import dump_state, load_state
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Outcome, Phase, ReleaseState, Slot
from lockgate.domain.rollout import (
    Look,
    SmokeResult,
    Transition,
    TransitionKind,
    Verification,
    Wait,
    advance,
    start,
)
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from lockgate.settings import WorkspaceLayout
from serving.engines.registry import engine
from serving.kubernetes_cluster import Gateway, KubernetesCluster
from serving.manifests.kserve import render_services
from serving.manifests.render import slot_objects
from tasks.watching import Watcher
from tests.unit.rollout.world import BEGIN, verdict
from tests.unit.serving.knative_double import Agent, Knative, Memory, Published, Store
from tests.unit.serving.kubernetes_double import Kubernetes

TEMPLATE = Path(__file__).parents[3] / "gitops_repo_template"
NAME = "kserve-serverless"
SPEC = CanarySpec(
    steps=(
        CanaryStep(weight=5, min_seconds=10, max_seconds=1e6),
        CanaryStep(weight=25, min_seconds=10, max_seconds=1e6),
    ),
    ready_seconds=600,
    bake_seconds=100,
    outage_budget_seconds=600,
)
SEEDS = 5
FATES = ("promoted", "fails", "fails in the bake", "fails at once", "never ready")
Item = dict[str, Any]
Present = dict[str, tuple[str, Item]]


def occupant(name: str) -> Occupant:
    candidate = Candidate(
        model=ImageRef.parse("r.example.com/smol@" + Digest.of_bytes(name.encode())),
        runtime=ImageRef.parse("r.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec(served_model_name="smol", engine=NAME, drain_seconds=20),
    )
    return Occupant(candidate=candidate, release=name, evidence=Digest.of_bytes(b"evidence"))


@pytest.fixture(scope="module")
def slots_of(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> Any:
    root = tmp_path_factory.mktemp("repo")
    shutil.copytree(TEMPLATE / "apps", root / "apps")

    known: dict[Digest, list[Item]] = {}

    def made(candidate: Candidate) -> list[Item]:
        if candidate.digest not in known:
            known[candidate.digest] = slot_objects(
                "smol", "local", candidate, root, kubectl=kubectl
            )
        return known[candidate.digest]

    return made


class World:
    """One model: its commits, who carries them out, and who drives its releases."""

    def __init__(self, slots_of: Any, store: Store, status: Callable[[], ModelStatus | None]):
        self.state = ReleaseState(model="smol", environment="local")
        self.now = BEGIN
        self.commits: list[tuple[ReleaseState, list[Item]]] = []
        self.kinds: list[TransitionKind] = []
        self.knative, self.agent = Knative(store), Agent(store)
        self.fate = "promoted"
        self.pace = 15.0
        """Seconds between two looks of the driver."""
        self._present: Present = {}
        self._slots_of, self._status = slots_of, status
        self._last: dict[str, int] = {}
        self.actions: dict[str, Callable[[], None]] = {
            **{name: getattr(self.knative, name) for name in Knative.ACTIONS},
            "kserve": lambda: self.knative.kserve(self.agent.applied),
            "fetch": lambda: self.agent.fetch(len(self.commits) - 1, self.commits[-1][1]),
            "account": lambda: self.agent.apply(ACCOUNTS),
            "apply": lambda: self.agent.apply(INFERENCE_SERVICES),
            "drive": self.drive,
        }

    def release(self, name: str, fate: str) -> None:
        who = occupant(name)
        self.fate = fate
        if fate == "never ready":
            self.knative.never_ready.add(str(who.candidate.digest))
        one = engine(NAME).one_object
        self._commit(start(self.state, who, SPEC, self.now, one_object=one))

    def turn(self, action: str) -> None:
        """Somebody does something, and nobody is sent where no commit that may be in force sends them."""
        self.actions[action]()
        self.check()

    def rounds(self, count: int) -> bool:
        """Everybody in turn, until nothing is under way and all is carried out; whether that came."""
        for _ in range(count):
            for action in self.actions:
                self.turn(action)
            done = self.state.release_under_way is None
            if done and not lagging(self._status(), self.state):
                return True
        return False

    def drive(self) -> None:
        self.now += timedelta(seconds=self.pace)
        if self.state.release_under_way is None:
            return
        self._commit(advance(self.state, self.look(), self.now))

    def look(self) -> Look:
        seen = self._status()
        cluster: Any = SimpleNamespace(
            status=lambda: ClusterStatus.model_construct(models={"smol": seen} if seen else {})
        )
        workspace: Any = SimpleNamespace(
            cluster=lambda _: cluster, layout=WorkspaceLayout(Path("/nonexistent"))
        )
        unjudged = self.state.model_copy(update={"phase": Phase.DEPLOYING, "step": None})
        slots = Watcher(workspace, unjudged).slots()
        state = self.state
        subject = state.occupant(state.stable if state.baking and state.stable else state.free_slot)
        stable = state.occupant(state.stable) if state.stable else None
        assert subject is not None
        digest = subject.candidate.digest
        failing = self.fate == "fails" and state.step == 1
        failing |= self.fate == "fails in the bake" and state.baking
        return Look(
            generation=state.generation,
            **slots._asdict(),
            smoke=SmokeResult(candidate=digest, ok=self.fate != "fails at once"),
            verification=Verification(candidate=digest, ok=True),
            fallback_verification=stable
            and Verification(candidate=stable.candidate.digest, ok=True),
            verdict=verdict("fail" if failing else "pass", self.now),
        )

    def _commit(self, answer: Transition | Wait) -> None:
        if isinstance(answer, Wait):
            return
        assert load_state(dump_state(answer.state)) == answer.state
        self.state = answer.state
        self.kinds.append(answer.kind)
        files: dict[str, str] = {}
        if any(self.state.occupant(slot) for slot in Slot):
            files = render_services(self.state, self._present, self._slots_of)
            assert render_services(self.state, _read(files), self._slots_of) == files
        self._present = _read(files)
        items = [item for name, (_, item) in self._present.items() if name.endswith(".yaml")]
        self.commits.append((self.state, items))

    def check(self) -> None:
        shares, live = self.knative.shares, self.knative.live_commit
        assert sum(shares.values()) in (0, 100)
        for candidate, share in shares.items():
            in_force = [_weight(state, candidate) for state, _ in self.commits[max(live, 0) :]]
            promoted = any(
                state.stable is not None and _at(state, state.stable) == candidate
                for state, _ in self.commits
            )
            denied = [n for n, (state, _) in enumerate(self.commits) if _denied(state, candidate)]
            if denied and live >= denied[0]:
                before = self._last.get(candidate, 0)
                # After the control's end KServe itself has to find the way back, and takes one more turn for it.
                allowed = before if self.kinds[denied[0] - 1] is TransitionKind.END_CONTROL else 0
                assert share <= allowed, f"{share}% on a rejected candidate"
            elif not promoted:
                assert share <= max(in_force), f"{share}% on a candidate, not {max(in_force)}%"
        self._last = shares


def _read(files: dict[str, str]) -> Present:
    return {path.rpartition("/")[2]: (text, yaml.safe_load(text)) for path, text in files.items()}


def _at(state: ReleaseState, slot: Slot) -> str | None:
    found = state.occupant(slot)
    return str(found.candidate.digest) if found is not None else None


def _weight(state: ReleaseState, candidate: str) -> int:
    for slot, weight in state.weights().items():
        if _at(state, slot) == candidate:
            return weight if state.stable is not None else 100
    return 0


def _denied(state: ReleaseState, candidate: str) -> bool:
    return state.is_denied(Digest(candidate)) is not None


def in_memory(slots_of: Any) -> World:
    store = Memory()

    def status() -> ModelStatus | None:
        services = store.items(INFERENCE_SERVICES)
        beside = (store.items(kind) for kind in (ACCOUNTS, REVISIONS, PODS))
        return model_status("smol", services, *beside, "http://x") if services else None

    return World(slots_of, store, status)


def test_releases_are_promoted_and_rolled_back_to_the_end(slots_of: Any) -> None:
    world = in_memory(slots_of)
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
            assert world.knative.shares == {_at(world.state, world.state.stable): 100}


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


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    kinds = (LLM_SERVICES, INFERENCE_SERVICES, REVISIONS, ACCOUNTS, GROUPS)
    made = Kubernetes("lockgate-local", kinds)
    yield made
    made.close()


def test_a_release_is_driven_through_the_api_server_and_every_commit_comes_into_force(
    slots_of: Any, kubernetes: Kubernetes
) -> None:
    cluster = KubernetesCluster(
        "local", gateway=Gateway("https://{model}.example.com/"), remote="r",
        reader=kubernetes.reader(),
    )  # fmt: skip
    store = Published(kubernetes)

    def status() -> ModelStatus | None:
        store.publish()
        return cluster.status().models.get("smol")

    world = World(slots_of, store, status)
    world.pace = 60
    for number, fate in enumerate(("promoted", "fails")):
        world.release(f"r{number}", fate)
        assert not cluster.carry_out("c" * 40, world.state, timeout_seconds=0)
        assert world.rounds(40), (fate, world.state.phase, world.kinds)
        assert cluster.carry_out("c" * 40, world.state, timeout_seconds=0)
    assert world.knative.shares == {str(occupant("r0").candidate.digest): 100}
    assert world.kinds.count(TransitionKind.RESTORE) == 1
    assert kubernetes.methods == {"GET"}
