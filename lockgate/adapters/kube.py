"""Reads a Kubernetes cluster: which candidates run in which slots, and which generation the gateway carries out.

Read-only (get and list of Deployments, Pods and HTTPRoutes): Lockgate changes a cluster through Git alone. What is reported
is what live objects say of themselves, each at the generation it was last observed at; a controller that lags behind makes
a slot or a route "not yet", never "as wanted".
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx
from kubernetes import client, config
from urllib3.exceptions import HTTPError

from lockgate.domain.cluster import (
    CANDIDATE_ANNOTATION,
    GENERATION_ANNOTATION,
    MODEL_LABEL,
    SLOT_LABEL,
    ModelStatus,
    PodStatus,
    RouteStatus,
    SlotStatus,
)
from lockgate.errors import ClusterError

_TIMEOUT = (5, 20)
_CRASH_LOOP = 3
_FINAL_REASONS = frozenset({"InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"})
_NEEDED_CONDITIONS = ("Accepted", "ResolvedRefs")


class KubernetesCluster:
    """One environment's namespace. `gateway_urls` gives, by model, the base URL that clients use."""

    def __init__(
        self,
        *,
        namespace: str,
        gateway_urls: Mapping[str, str],
        webhooks: Sequence[str] = (),
        api: client.ApiClient | None = None,
    ) -> None:
        self._namespace = namespace
        self._gateway_urls = dict(gateway_urls)
        self._webhooks = tuple(webhooks)
        self._api = api or configured_client()
        self._apps = client.AppsV1Api(self._api)
        self._core = client.CoreV1Api(self._api)
        self._custom = client.CustomObjectsApi(self._api)

    def model_status(self, model: str) -> ModelStatus:
        """The model's slots and route. `ClusterError` if the API server does not answer, or forbids it."""
        selector = f"{MODEL_LABEL}={model}"
        try:
            deployments = self._plain(
                self._apps.list_namespaced_deployment(
                    self._namespace, label_selector=selector, _request_timeout=_TIMEOUT
                )
            )["items"]
            pods = self._plain(
                self._core.list_namespaced_pod(
                    self._namespace, label_selector=selector, _request_timeout=_TIMEOUT
                )
            )["items"]
            routes = self._custom.list_namespaced_custom_object(
                "gateway.networking.k8s.io",
                "v1",
                self._namespace,
                "httproutes",
                label_selector=selector,
                _request_timeout=_TIMEOUT,
            )["items"]
        except client.ApiException as error:
            raise ClusterError(
                f"the API server answered {error.status} {error.reason} about {model}",
                hint="Lockgate needs get and list of deployments, pods and httproutes "
                f"in namespace {self._namespace}",
            ) from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from error
        try:
            return self._read(model, deployments, pods, routes)
        except (LookupError, TypeError, ValueError) as error:
            raise ClusterError(f"what runs of {model} cannot be read: {error!r}") from error

    def slot_status(self, model: str, slot: str) -> SlotStatus | None:
        """None if the slot is empty."""
        return self.model_status(model).slots.get(str(slot))

    def gateway_url(self, model: str) -> str:
        """Base URL of the model's gateway, without `/v1`."""
        try:
            return self._gateway_urls[model]
        except KeyError:
            raise ClusterError(
                f"no gateway URL is configured for {model}", hint="set it in the settings"
            ) from None

    def sync(
        self, generation: int | None = None, *, model: str = "", timeout_seconds: float = 10.0
    ) -> bool:
        """Asks the GitOps agents' webhooks to look now. With `generation`: whether the model's route carries it (or a later
        one) out in time.

        A webhook that fails is no error: agents look by themselves as well. `ClusterError` if the cluster cannot be read.
        """
        deadline = time.monotonic() + timeout_seconds
        for webhook in self._webhooks:
            try:
                httpx.post(webhook, timeout=min(5.0, timeout_seconds), json={})
            except httpx.HTTPError:
                continue
        if generation is None:
            return True
        while True:
            live = self.model_status(model).generation
            if live is not None and live >= generation:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.5)

    def _plain(self, answer: Any) -> dict[str, Any]:
        """The object as the API server wrote it, whatever the client's classes make of it."""
        data = self._api.sanitize_for_serialization(answer)
        return data if isinstance(data, dict) else {}

    def _read(
        self,
        model: str,
        deployments: list[dict[str, Any]],
        pods: list[dict[str, Any]],
        routes: list[dict[str, Any]],
    ) -> ModelStatus:
        if len(routes) > 1:
            raise ValueError(f"{len(routes)} HTTPRoutes")
        route = routes[0] if routes else None
        loaded = route is not None and _carried_out(route)
        annotations = (route or {}).get("metadata", {}).get("annotations", {})
        generation = annotations.get(GENERATION_ANNOTATION) if loaded else None
        return ModelStatus(
            model=model,
            commit="",
            generation=int(generation) if generation is not None else None,
            gateway_url=self._gateway_urls.get(model, ""),
            route=_route(route, loaded) if route is not None else None,
            slots={
                d["metadata"]["labels"][SLOT_LABEL]: _slot(
                    d, [p for p in pods if _slot_of(p) == _slot_of(d)]
                )
                for d in deployments
            },
        )


def configured_client() -> client.ApiClient:
    """In a pod by its service account, elsewhere by the kubeconfig. `ClusterError` if there is neither."""
    try:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"no way to a Kubernetes cluster is configured: {error}",
            hint="set KUBECONFIG, or run where there is a service account",
        ) from error
    return client.ApiClient()


def _slot_of(item: Mapping[str, Any]) -> str | None:
    slot = item["metadata"].get("labels", {}).get(SLOT_LABEL)
    return str(slot) if slot is not None else None


def _carried_out(route: Mapping[str, Any]) -> bool:
    """Whether every gateway that the route asks for has taken up exactly this version of it."""
    parents = route.get("status", {}).get("parents", [])
    generation = route["metadata"]["generation"]
    for parent in parents:
        conditions = {c["type"]: c for c in parent.get("conditions", [])}
        for needed in _NEEDED_CONDITIONS:
            condition = conditions.get(needed, {})
            if (
                condition.get("status") != "True"
                or condition.get("observedGeneration") != generation
            ):
                return False
    return len(parents) >= len(route["spec"].get("parentRefs", [])) > 0


def _route(route: Mapping[str, Any], loaded: bool) -> RouteStatus:
    weights: dict[str, int] = {}
    for rule in route["spec"].get("rules", []):
        if any(match.get("headers") for match in rule.get("matches", [])):
            continue
        for backend in rule.get("backendRefs", []):
            weights[backend["name"].rpartition("-")[2]] = int(backend.get("weight", 1))
    return RouteStatus(
        weights=weights,
        effective=weights,
        version=str(route["metadata"].get("resourceVersion", "")),
        loaded=loaded,
    )


def _slot(deployment: Mapping[str, Any], pods: list[dict[str, Any]]) -> SlotStatus:
    metadata, spec = deployment["metadata"], deployment["spec"]
    status = deployment.get("status", {})
    template = spec["template"]["metadata"].get("annotations", {})
    candidate = template.get(CANDIDATE_ANNOTATION)
    seen = [_pod(pod) for pod in pods]
    current = [pod for pod in seen if pod.candidate == candidate and pod.state != "terminating"]
    # Pods of an older template of the same candidate do not count either: the controller knows which ones are updated.
    observed = status.get("observedGeneration") == metadata["generation"]
    updated = min(sum(p.ready for p in current), status.get("updatedReplicas", 0))
    refusals, waiting = _troubles(deployment, pods)
    return SlotStatus(
        slot=metadata["labels"][SLOT_LABEL],
        deployment=metadata["name"],
        candidate=candidate,
        desired=int(spec.get("replicas", 1)),
        ready=int(status.get("readyReplicas", 0)),
        updated=updated if observed else 0,
        restarts=sum(pod.restarts for pod in current),
        pods=tuple(seen),
        refusals=tuple(refusals),
        waiting=tuple(waiting),
    )


def _pod(pod: Mapping[str, Any]) -> PodStatus:
    metadata, status = pod["metadata"], pod.get("status", {})
    containers = status.get("containerStatuses", [])
    readiness: dict[str, Any] = next(
        (c for c in status.get("conditions", []) if c["type"] == "Ready"), {}
    )
    ready = readiness.get("status") == "True"
    changed = readiness.get("lastTransitionTime") or metadata["creationTimestamp"]
    terminating = metadata.get("deletionTimestamp") is not None
    started = bool(containers) and all(c.get("started") for c in containers)
    address = status.get("podIP")
    return PodStatus(
        name=metadata["name"],
        pid=None,
        url=f"http://{address}:8000" if address and started else None,
        ready=ready and not terminating,
        since=datetime.fromisoformat(changed).timestamp(),
        state="terminating" if terminating else "running" if started else "pending",
        candidate=metadata.get("annotations", {}).get(CANDIDATE_ANNOTATION, ""),
        template=metadata.get("labels", {}).get("pod-template-hash", ""),
        restarts=sum(int(c.get("restartCount", 0)) for c in containers),
        log=f"kubectl logs -n {metadata['namespace']} {metadata['name']}",
    )


def _troubles(
    deployment: Mapping[str, Any], pods: list[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """What is final, and what may pass by itself."""
    final: list[str] = []
    passing: list[str] = []
    for condition in deployment.get("status", {}).get("conditions", []):
        text = f"{condition.get('reason')}: {condition.get('message')}"
        if condition["type"] == "Progressing" and condition["status"] == "False":
            final.append(text)
        elif condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            # Admission said no to this very pod; a quota may have room later.
            denied = "denied the request" in str(condition.get("message"))
            (final if denied else passing).append(text)
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", []):
            reason = container.get("state", {}).get("waiting", {}).get("reason")
            if reason is None or reason in ("ContainerCreating", "PodInitializing"):
                continue
            restarts = int(container.get("restartCount", 0))
            text = f"{pod['metadata']['name']}: {reason} after {restarts} restarts"
            looping = reason == "CrashLoopBackOff" and restarts >= _CRASH_LOOP
            (final if looping or reason in _FINAL_REASONS else passing).append(text)
    return final, passing
