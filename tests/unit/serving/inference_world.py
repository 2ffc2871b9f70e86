"""One model under KServe on Knative, driven from commit to commit by the real state machine, rendering and observation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from lockgate.adapters.kube import Kind
from lockgate.adapters.kube.inference_service import (
    ACCOUNTS,
    INFERENCE_SERVICES,
    REVISIONS,
    model_status,
)
from lockgate.adapters.kube.models import PODS
from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import ClusterStatus, ModelStatus, lagging
from lockgate.domain.digests import Digest
from lockgate.domain.gitops import dump_state, load_state
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
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
from lockgate.settings import Settings, WorkspaceLayout
from serving.engines.registry import engine
from serving.manifests.kserve import render_services
from serving.manifests.render import slot_objects
from tasks.watching import Watcher
from tests.unit.rollout.world import BEGIN, verdict
from tests.unit.serving.knative_double import Agent, Knative, Memory, Store

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


def bases(root: Path, kubectl: Path) -> Callable[[Candidate], list[Item]]:
    """What the template's bases make of a candidate's slot, each candidate's once."""
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
        self._slots_of, self.status = slots_of, status
        self._last: dict[str, int] = {}
        self.actions: dict[str, Callable[[], None]] = {
            **{name: getattr(self.knative, name) for name in Knative.ACTIONS},
            "kserve": lambda: self.knative.kserve(self.agent.applied),
            "fetch": lambda: self.agent.fetch(len(self.commits) - 1, self.commits[-1][1]),
            "account": lambda: self.agent.apply(ACCOUNTS),
            "apply": lambda: self.agent.apply(INFERENCE_SERVICES),
            "drive": self.drive,
        }

    def change(self, kind: Kind, **changes: Any) -> None:
        """The one object of a kind is another at the API server; `status` and the like, whole."""
        (item,) = self.knative.store.items(kind)
        self.knative.store.put(kind, {**item, **changes})

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
            if done and not lagging(self.status(), self.state):
                return True
        return False

    def drive(self) -> None:
        self.now += timedelta(seconds=self.pace)
        if self.state.release_under_way is None:
            return
        self._commit(advance(self.state, self.look(), self.now))

    def look(self) -> Look:
        seen = self.status()
        cluster: Any = SimpleNamespace(
            status=lambda: ClusterStatus.model_construct(models={"smol": seen} if seen else {})
        )
        workspace: Any = SimpleNamespace(
            cluster=lambda _: cluster,
            layout=WorkspaceLayout(Path("/nonexistent")),
            settings=Settings(),
        )
        unjudged = self.state.model_copy(update={"phase": Phase.DEPLOYING, "step": None})
        slots = Watcher(workspace, unjudged).slots()
        # The world has a clock of its own, and its pods the times of none.
        a, b = (s and s.model_copy(update={"unready_seconds": 0}) for s in (slots.a, slots.b))
        slots = slots._replace(a=a, b=b)
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
                state.stable is not None and at(state, state.stable) == candidate
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


def at(state: ReleaseState, slot: Slot) -> str | None:
    found = state.occupant(slot)
    return str(found.candidate.digest) if found is not None else None


def _weight(state: ReleaseState, candidate: str) -> int:
    for slot, weight in state.weights().items():
        if at(state, slot) == candidate:
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
