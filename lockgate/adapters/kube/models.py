"""One model in one namespace: its workloads, pods and route, listed together and read as its status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.adapters.kube import kserve
from lockgate.adapters.kube.api import Forbidden, Kind, Listing, Reader
from lockgate.adapters.kube.reading import (
    carried_out,
    route_generation,
    route_status,
    slot_of,
    slot_status,
)
from lockgate.domain.cluster import MODEL_LABEL, ModelStatus, SlotStatus
from lockgate.errors import ClusterError

DEPLOYMENTS = Kind("apps", "v1", "deployments")
REPLICA_SETS = Kind("apps", "v1", "replicasets")
PODS = Kind("", "v1", "pods")
ROUTES = Kind("gateway.networking.k8s.io", "v1", "httproutes")


@dataclass(frozen=True)
class Observed:
    """A model's status, and the route as it was listed, to wait for a newer one."""

    status: ModelStatus
    routes: Listing
    """Of what carries the weights: HTTPRoutes, or the objects of an engine that has weights of its own."""
    watched: Kind


class ModelReader:
    """Reads the models of one namespace. Errors as of `Reader`."""

    def __init__(self, reader: Reader, namespace: str) -> None:
        self._reader = reader
        self.namespace = namespace

    def models(self) -> set[str]:
        """The models that have a route or a workload here."""
        found: set[str] = set()
        for kind in (DEPLOYMENTS, ROUTES, kserve.LLM_SERVICES, kserve.INFERENCE_SERVICES):
            try:
                listed = self._reader.list(kind, self.namespace, {}).items
            except Forbidden:
                if kind in (DEPLOYMENTS, ROUTES):
                    raise
                continue
            labels = (item["metadata"].get("labels") or {} for item in listed)
            found |= {label[MODEL_LABEL] for label in labels if MODEL_LABEL in label}
        return found

    def observe(self, model: str, gateway_url: str) -> Observed:
        """The model's slots and route as they are now.

        The route is listed first: what is listed after it can only be newer, so a route that is seen in force never stands
        beside slots from before it.
        """
        labels = {MODEL_LABEL: model}

        def listed(kind: Kind) -> Listing:
            return self._reader.list(kind, self.namespace, labels)

        routes = listed(ROUTES)
        pods = listed(PODS).items
        deployments = listed(DEPLOYMENTS).items
        replica_sets = listed(REPLICA_SETS).items
        services, trouble = self._kserve(labels)
        try:
            if services.items:
                status = kserve.model_status(model, services.items, pods, gateway_url)
                return Observed(status, services, kserve.kind_of(services.items[0]))
            status = _status(model, gateway_url, routes.items, deployments, replica_sets, pods)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ClusterError(f"what runs of {model} cannot be read: {error!r}") from error
        if not deployments and trouble is not None:
            status = status.model_copy(update={"error": trouble})
        return Observed(status, routes, ROUTES)

    def wait_for_change(self, since: Observed, model: str, seconds: float) -> None:
        """Until the model's route changes; see `Reader.wait_for_change`."""
        self._reader.wait_for_change(
            since.watched, self.namespace, {MODEL_LABEL: model}, since.routes, seconds
        )

    def _kserve(self, labels: Mapping[str, str]) -> tuple[Listing, str | None]:
        """KServe's services of the model, or why they could not be read: most clusters and identities know none."""
        trouble = None
        for kind in (kserve.LLM_SERVICES, kserve.INFERENCE_SERVICES):
            try:
                found = self._reader.list(kind, self.namespace, labels)
            except Forbidden as error:
                trouble = error.message
                continue
            if found.items:
                return found, None
        return Listing((), ""), trouble


def _status(
    model: str,
    gateway_url: str,
    routes: Iterable[dict[str, Any]],
    deployments: Iterable[dict[str, Any]],
    replica_sets: Iterable[dict[str, Any]],
    pods: Iterable[dict[str, Any]],
) -> ModelStatus:
    routes, pods = list(routes), list(pods)
    if len(routes) > 1:
        raise ValueError(f"{len(routes)} HTTPRoutes")
    route = routes[0] if routes else None
    loaded = route is not None and carried_out(route) is None
    slots: dict[str, SlotStatus] = {}
    for deployment in deployments:
        slot = slot_of(deployment)
        if slot is None:
            continue
        if slot in slots:
            raise ValueError(f"two Deployments in slot {slot}")
        own = [pod for pod in pods if slot_of(pod) == slot]
        slots[slot] = slot_status(deployment, replica_sets, own)
    return ModelStatus(
        model=model,
        commit="",
        generation=route_generation(route) if route is not None and loaded else None,
        gateway_url=gateway_url,
        route=route_status(route) if route is not None else None,
        slots=slots,
    )
