"""A stateful double of the Kubernetes API (kmock) with what controllers, kubelet and gateway would do to its objects.

Objects come in by the API as a GitOps agent would send them. Nothing about them changes until `settle` or one of its parts is
called, so that a test decides who lags behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import kmock
from kubernetes import client

from lockgate.adapters.kube import Kind, Reader
from lockgate.adapters.kube.models import DEPLOYMENTS, PODS, REPLICA_SETS, ROUTES
from lockgate.domain.cluster import CANDIDATE_ANNOTATION
from lockgate.domain.digests import Digest

SINCE = "2026-01-02T03:04:05Z"
REVISION = "deployment.kubernetes.io/revision"
KINDS = {"Deployment": DEPLOYMENTS, "ReplicaSet": REPLICA_SETS, "Pod": PODS, "HTTPRoute": ROUTES}


class Kubernetes:
    """One API server on a port of its own, in a thread of its own."""

    def __init__(self, namespace: str, kinds: Iterable[Kind] = ()) -> None:
        self.namespace = namespace
        self._versions = itertools.count(100)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stop: asyncio.Event | None = None
        started = threading.Event()
        self.kmock: Any = None
        self._serving = asyncio.run_coroutine_threadsafe(
            self._serve(started, [*KINDS.values(), *kinds]), self._loop
        )
        assert started.wait(10), self._serving
        self.url = str(self.kmock.url).rstrip("/")
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=10)

    async def _serve(self, started: threading.Event, kinds: Iterable[Kind]) -> None:
        self.kmock = kmock.KubernetesEmulator()
        for kind in kinds:
            name = kmock.resource(kind.group, kind.version, kind.plural)
            self.kmock.resources[name] = {"kind": kind.plural, "namespaced": True}
        self._stop = asyncio.Event()
        async with kmock.Server(self.kmock), self.kmock:
            started.set()
            await self._stop.wait()

    def close(self) -> None:
        self._http.close()
        if self._stop is not None and not self._serving.done():
            self._loop.call_soon_threadsafe(self._stop.set)
            # kmock repeats here what it answered with an error, as the tests told it to.
            with contextlib.suppress(BaseExceptionGroup):
                self._serving.result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def reader(self) -> Reader:
        """With a pool of its own, and no retries: what is lost is seen at once."""
        return Reader(client.ApiClient(client.Configuration(host=self.url, retries=False)))

    @property
    def methods(self) -> set[str]:
        """How the API was used by others than this double."""
        return {
            request.method.value
            for request in self.kmock
            if request.headers.get("x-double") is None
        }

    def items(self, kind: Kind) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", kind.path(self.namespace))["items"]
        return found

    def get(self, kind: Kind, name: str) -> dict[str, Any] | None:
        return next((i for i in self.items(kind) if i["metadata"]["name"] == name), None)

    def apply(self, kind: Kind, item: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply, as far as a test needs it: a changed spec makes a new generation."""
        name = item["metadata"]["name"]
        present = self.get(kind, name)
        metadata = {**item["metadata"], "namespace": self.namespace}
        if present is None:
            metadata |= {"generation": 1, "uid": f"uid-{kind.plural}-{name}"}
            metadata["creationTimestamp"] = SINCE
        elif present.get("spec") != item.get("spec"):
            metadata["generation"] = present["metadata"]["generation"] + 1
        return self.put(kind, {**item, "metadata": metadata})

    def put(self, kind: Kind, item: Mapping[str, Any]) -> dict[str, Any]:
        """Writes an object as it is, under a new resource version."""
        metadata = {**item["metadata"], "namespace": self.namespace}
        metadata["resourceVersion"] = str(next(self._versions))
        whole = {**item, "metadata": metadata}
        if self.get(kind, metadata["name"]) is None:
            return self._ask("POST", kind.path(self.namespace), whole)
        return self._ask("PATCH", kind.path(self.namespace, metadata["name"]), whole)

    def create(self, kind: Kind, namespace: str, item: Mapping[str, Any]) -> None:
        """An object of another namespace than the models'."""
        self._ask("POST", kind.path(namespace), item)

    def delete(self, kind: Kind, name: str) -> None:
        self._ask("DELETE", kind.path(self.namespace, name))

    def sync(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """What an agent does with a commit: applies what is there and prunes what is gone. Kinds that nobody acts on here
        (Services and the like) are left out."""
        wanted: dict[Kind, set[str]] = {DEPLOYMENTS: set(), ROUTES: set()}
        for item in manifests:
            kind = KINDS.get(item["kind"])
            if kind is not None:
                wanted[kind].add(item["metadata"]["name"])
                self.apply(kind, item)
        for kind, names in wanted.items():
            for item in self.items(kind):
                if item["metadata"]["name"] not in names:
                    self.delete(kind, item["metadata"]["name"])

    def settle(self) -> None:
        """Everybody has done what the objects ask for."""
        self.settle_deployments()
        self.settle_routes()

    def settle_deployments(self, *, ready: bool = True) -> None:
        for deployment in self.items(DEPLOYMENTS):
            self._roll_out(deployment, ready)
        standing = {d["metadata"]["name"] for d in self.items(DEPLOYMENTS)}
        for pod in self.items(PODS):
            if pod["metadata"]["name"].rsplit("-", 2)[0] not in standing:
                self.delete(PODS, pod["metadata"]["name"])

    def settle_routes(self, **condition: Any) -> None:
        for route in self.items(ROUTES):
            conditions = [
                {
                    "type": kind,
                    "status": "True",
                    "observedGeneration": route["metadata"]["generation"],
                    **condition,
                }
                for kind in ("Accepted", "ResolvedRefs")
            ]
            parents = [{"conditions": conditions} for _ in route["spec"]["parentRefs"]]
            self.put(ROUTES, {**route, "status": {"parents": parents}})

    def _roll_out(self, deployment: dict[str, Any], ready: bool) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = spec["template"]
        label = Digest.of_json(template).hex[:10]
        name = f"{metadata['name']}-{label}"
        sets = [
            item
            for item in self.items(REPLICA_SETS)
            if item["metadata"]["ownerReferences"][0]["uid"] == metadata["uid"]
        ]
        present = next((s for s in sets if s["metadata"]["name"] == name), None)
        revision = str(max([0, *(int(s["metadata"]["annotations"][REVISION]) for s in sets)]) + 1)
        if present is not None:
            revision = present["metadata"]["annotations"][REVISION]
        labels = {**template["metadata"]["labels"], "pod-template-hash": label}
        self.apply(
            REPLICA_SETS,
            {
                "kind": "ReplicaSet",
                "metadata": {
                    "name": name,
                    "labels": labels,
                    "annotations": {REVISION: revision},
                    "ownerReferences": [{"uid": metadata["uid"], "controller": True}],
                },
                "spec": {"replicas": spec["replicas"], "template": template},
            },
        )
        wanted = {f"{name}-{number}" for number in range(spec["replicas"])}
        for pod in self.items(PODS):
            own = pod["metadata"]["name"].rsplit("-", 2)[0] == metadata["name"]
            if own and pod["metadata"]["name"] not in wanted:
                self.delete(PODS, pod["metadata"]["name"])
        for pod_name in sorted(wanted):
            self.put(PODS, live_pod(pod_name, labels, template, ready=ready))
        count = spec["replicas"]
        annotations = {**metadata.get("annotations", {}), REVISION: revision}
        self.put(
            DEPLOYMENTS,
            {
                **deployment,
                "metadata": {**metadata, "annotations": annotations},
                "status": {
                    "observedGeneration": metadata["generation"],
                    "replicas": count,
                    "updatedReplicas": count,
                    "readyReplicas": count if ready else 0,
                },
            },
        )

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self._http.request(method, path, json=body, headers={"x-double": "1"})
        assert answer.status_code < 300, answer.text
        data: dict[str, Any] = answer.json()
        return data


def live_pod(
    name: str, labels: Mapping[str, str], template: Mapping[str, Any], *, ready: bool = True
) -> dict[str, Any]:
    """A pod of this template as a kubelet reports it."""
    candidate = template["metadata"]["annotations"][CANDIDATE_ANNOTATION]
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": dict(labels),
            "annotations": {CANDIDATE_ANNOTATION: candidate},
            "creationTimestamp": SINCE,
        },
        "spec": {"containers": template["spec"]["containers"]},
        "status": {
            "podIP": "127.0.0.1",
            "conditions": [
                {"type": "Ready", "status": str(ready), "lastTransitionTime": SINCE},
            ],
            "containerStatuses": [
                {"name": "vllm", "started": ready, "restartCount": 0, "state": {"running": {}}}
            ],
        },
    }
