"""What KServe and Knative do with an InferenceService, by the rules in their source, one reconciliation at a time.

KServe (`pkg/controller/v1beta1/inferenceservice`, v0.15 to v0.17): `createKnativeService` in `reconcilers/knative/ksvc_reconciler.go`
makes template and traffic, `PropagateStatus` in `pkg/apis/serving/v1beta1/inference_service_status.go` says which revision was last
rolled out. Knative Serving: `findAndSetLatestReadyRevision` in `pkg/reconciler/configuration/configuration.go`, and the service,
whose status takes up its configuration's and its route's each by itself (`pkg/reconciler/service/service.go`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any, Protocol

from lockgate.adapters.kube import Kind
from lockgate.adapters.kube.inference_service import ACCOUNTS, INFERENCE_SERVICES, REVISIONS
from lockgate.adapters.kube.models import PODS
from lockgate.domain.cluster import CANDIDATE_ANNOTATION
from tests.unit.serving.kubernetes_double import Kubernetes, live_pod

Item = dict[str, Any]
TAG = "serving.kserve.io/enable-tag-routing"


class Store(Protocol):
    """The API server, or the part of it that is asked here."""

    def items(self, kind: Kind) -> list[Item]: ...
    def put(self, kind: Kind, item: Item) -> Any: ...
    def delete(self, kind: Kind, name: str) -> None: ...


class Memory:
    """A store without a server."""

    def __init__(self) -> None:
        self._items: dict[Kind, dict[str, str]] = {}

    def items(self, kind: Kind) -> list[Item]:
        return [json.loads(text) for text in self._items.get(kind, {}).values()]

    def put(self, kind: Kind, item: Item) -> None:
        metadata = {"namespace": "lockgate-local", **item["metadata"]}
        known = self._items.setdefault(kind, {})
        known[metadata["name"]] = json.dumps({**item, "metadata": metadata})

    def delete(self, kind: Kind, name: str) -> None:
        del self._items[kind][name]


class Published(Memory):
    """A store whose objects stand at an API server whenever somebody is about to ask that one."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        super().__init__()
        self._kubernetes = kubernetes
        self._there: dict[tuple[Kind, str], str] = {}

    def publish(self) -> None:
        now = {(kind, name): t for kind, known in self._items.items() for name, t in known.items()}
        for kind, name in self._there.keys() - now.keys():
            self._kubernetes.delete(kind, name)
        for (kind, name), text in now.items():
            there = self._there.get((kind, name))
            if there != text:
                if there is not None:
                    self._kubernetes.delete(kind, name)  # what is not there any more is not kept
                self._kubernetes.put(kind, json.loads(text))
        self._there = now


class Knative:
    """The controllers of one InferenceService. Each method is one reconciliation of one of them; nothing else happens."""

    ACTIONS = ("kserve", "service", "configuration", "route", "kubelet", "autoscaler")

    def __init__(self, store: Store, *, never_ready: Iterable[str] = ()) -> None:
        """`never_ready`: candidates whose servers never answer."""
        self.store = store
        self.never_ready = set(never_ready)
        self.asked: Item | None = None
        """The Knative service's spec."""
        self.said: Item = {"created": "", "ready": "", "traffic": [], "routed": False}
        """And its status."""
        self.config: Item = {"generation": 0, "observed": 0, "created": "", "ready": ""}
        self.targets: list[Item] = []
        self.routed: list[Item] = []
        self.commit = self.config_commit = self.route_commit = self.live_commit = -1
        """Which commit each was made from, to say what may be in force."""

    @property
    def shares(self) -> dict[str, int]:
        """Percent of the real traffic by candidate."""
        candidates = {r["metadata"]["name"]: _candidate(r) for r in self.store.items(REVISIONS)}
        found: dict[str, int] = {}
        for target in self.routed:
            name = candidates[target["revisionName"]]
            found[name] = found.get(name, 0) + target["percent"]
        return {name: share for name, share in found.items() if share}

    # KServe

    def kserve(self, commit: int = 0) -> None:
        """One reconciliation of the InferenceService: writes the Knative service, then takes up its status."""
        found = self.store.items(INFERENCE_SERVICES)
        if not found:
            return
        (service,) = found
        predictor = service["spec"]["predictor"]
        component = service.get("status", {}).get("components", {}).get("predictor", {})
        rolled_out = component.get("latestRolledoutRevision", "")
        annotations = {**service["metadata"]["annotations"], **predictor["annotations"]}
        latest = {"latestRevision": True, "percent": 100}
        if annotations.get(TAG) == "true":
            latest["tag"] = "latest"
        traffic = [latest]
        percent = predictor.get("canaryTrafficPercent")
        if percent is not None and rolled_out:
            latest["percent"] = percent
            if percent < 100:
                rest = {"revisionName": rolled_out, "latestRevision": False, "tag": "prev"}
                traffic.append({**rest, "percent": 100 - percent})
        size = {
            "autoscaling.knative.dev/min-scale": str(predictor["minReplicas"]),
            "autoscaling.knative.dev/max-scale": str(predictor["maxReplicas"]),
        }
        own = {"annotations", "labels", "canaryTrafficPercent", "minReplicas", "maxReplicas"}
        template = {
            "metadata": {
                "labels": {**service["metadata"]["labels"], **predictor["labels"]},
                "annotations": {**annotations, **size},
            },
            "spec": {key: value for key, value in predictor.items() if key not in own},
        }
        self.asked = {"template": template, "traffic": traffic}
        self.commit = commit
        self.store.put(INFERENCE_SERVICES, {**service, "status": self._status(component)})

    def _status(self, component: Item) -> Item:
        said = self.said
        rolled_out = component.get("latestRolledoutRevision", "")
        previous = component.get("previousRolledoutRevision", "")
        by_revision: dict[str, int] = {}
        for target in said["traffic"]:
            name = target["revisionName"]
            by_revision[name] = by_revision.get(name, 0) + target["percent"]
        for target in said["traffic"]:
            if target["revisionName"] != said["ready"] or not target["latestRevision"]:
                continue
            if rolled_out != said["ready"]:
                if target["percent"] == 100:
                    previous, rolled_out = rolled_out, said["ready"]
            elif said["ready"] == said["created"] and target["percent"] < 100:
                # "the latest ready revision is rolled out with 100% and then rolled back"
                whole = by_revision[target["revisionName"]] == 100
                rolled_out = previous if whole and previous else rolled_out
        component = {
            "latestCreatedRevision": said["created"],
            "latestReadyRevision": said["ready"],
            "latestRolledoutRevision": rolled_out,
            "previousRolledoutRevision": previous,
            "traffic": said["traffic"],
        }
        routed = {"type": "PredictorRouteReady", "status": str(said["routed"])}
        return {"components": {"predictor": component}, "conditions": [routed]}

    # Knative

    def service(self) -> None:
        """Writes configuration and route, and takes up the status of each that is not behind."""
        if self.asked is None:
            return
        if self.config.get("template") != self.asked["template"]:
            self.config["template"] = copy.deepcopy(self.asked["template"])
            self.config["generation"] += 1
        behind = self.targets != self.asked["traffic"]
        self.targets = copy.deepcopy(self.asked["traffic"])
        self.route_commit = self.commit
        if self.config["generation"] == self.config["observed"]:
            self.said |= {"created": self.config["created"], "ready": self.config["ready"]}
        if behind or len(self.routed) != len(self.targets):
            self.said["routed"] = False
        else:
            self.said |= {"traffic": copy.deepcopy(self.routed), "routed": True}

    def configuration(self) -> None:
        """Makes the revision of its generation, and finds the newest that is ready."""
        generation = self.config["generation"]
        if not generation:
            return
        name = f"smol-predictor-{generation:05}"
        revisions = {r["metadata"]["name"]: r for r in self.store.items(REVISIONS)}
        if name not in revisions:
            template = copy.deepcopy(self.config["template"])
            labels = template["metadata"]["labels"]
            labels["serving.knative.dev/configurationGeneration"] = str(generation)
            revisions[name] = {
                "kind": "Revision",
                "metadata": {"name": name, **template["metadata"]},
                "spec": template["spec"],
                "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]},
            }
            self.store.put(REVISIONS, revisions[name])
        self.config |= {"created": name, "observed": generation}
        for found in sorted(revisions, reverse=True):
            if found < self.config["ready"]:
                break
            if revisions[found]["status"]["conditions"][0]["status"] == "True":
                self.config["ready"] = found
                break

    def route(self) -> None:
        """Programs the gateway."""
        if not self.config["ready"]:
            return
        self.routed = [
            {**t, "revisionName": t.get("revisionName", self.config["ready"])} for t in self.targets
        ]
        self.live_commit = self.route_commit

    def kubelet(self) -> None:
        """Servers that are wanted start and answer."""
        named = {t["revisionName"] for t in self.routed}
        for revision in self.store.items(REVISIONS):
            name, candidate = revision["metadata"]["name"], _candidate(revision)
            if name not in named | {self.config["created"]}:
                continue
            ready = candidate not in self.never_ready
            count = int(revision["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"])
            for number in range(count):
                labels = {**revision["metadata"]["labels"], "serving.knative.dev/revision": name}
                template = {
                    "metadata": revision["metadata"],
                    "spec": {"containers": revision["spec"]["containers"]},
                }
                pod = live_pod(f"{name}-{number}", labels, template, ready=ready)
                self.store.put(PODS, pod)
            if ready:
                revision["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
                self.store.put(REVISIONS, revision)

    def autoscaler(self) -> None:
        """A revision that no route names is scaled to nothing, but for the newest, which has yet to become ready."""
        named = {t["revisionName"] for t in self.routed} | {self.config["created"]}
        named |= {t.get("revisionName", "") for t in self.targets}
        for pod in self.store.items(PODS):
            if pod["metadata"]["labels"]["serving.knative.dev/revision"] not in named:
                self.store.delete(PODS, pod["metadata"]["name"])


class Agent:
    """A GitOps agent: fetches a commit, and applies its objects in any order."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fetched: tuple[int, list[Item]] = (-1, [])
        self.applied = -1
        """The commit that the InferenceService is of."""

    def fetch(self, commit: int, items: list[Item]) -> None:
        self.fetched = (commit, items)

    def apply(self, kind: Kind) -> None:
        commit, items = self.fetched
        name = {INFERENCE_SERVICES: "InferenceService", ACCOUNTS: "ServiceAccount"}[kind]
        status = {i["metadata"]["name"]: i.get("status") for i in self.store.items(kind)}
        for item in items:
            if item["kind"] == name:
                kept = status.get(item["metadata"]["name"])
                self.store.put(kind, {**item, **({"status": kept} if kept else {})})
                if kind == INFERENCE_SERVICES:
                    self.applied = commit


def _candidate(revision: Item) -> str:
    return str(revision["metadata"]["annotations"][CANDIDATE_ANNOTATION])
