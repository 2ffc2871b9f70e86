"""One model in one namespace: its workloads, pods and route, listed together and read as its status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.adapters.kube import inference_service, kserve
from lockgate.adapters.kube.api import Forbidden, Kind, Listing, Reader
from lockgate.adapters.kube.inference_service import ACCOUNTS, INFERENCE_SERVICES, REVISIONS
from lockgate.adapters.kube.reading import (
    carried_out,
    group_status,
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
GROUPS = Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets")
"""A slot whose replicas span several nodes."""
_OPTIONAL = (GROUPS, kserve.LLM_SERVICES, INFERENCE_SERVICES)
"""Most clusters know none of these, and an identity may have no right to them."""


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
        for kind in (DEPLOYMENTS, ROUTES, *_OPTIONAL):
            try:
                listed = self._reader.list(kind, self.namespace, {}).items
            except Forbidden:
                if kind not in _OPTIONAL:
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
        several, no_services = self._optional(kserve.LLM_SERVICES, labels)
        single, no_single = self._optional(INFERENCE_SERVICES, labels)
        accounts = listed(ACCOUNTS).items if single.items else ()
        revisions = listed(REVISIONS).items if single.items else ()
        pods = listed(PODS).items
        deployments = listed(DEPLOYMENTS).items
        replica_sets = listed(REPLICA_SETS).items
        groups, no_groups = self._optional(GROUPS, labels)
        try:
            if several.items:
                status = kserve.model_status(model, several.items, pods, gateway_url)
                return Observed(status, several, kserve.LLM_SERVICES)
            if single.items:
                status = inference_service.model_status(
                    model, single.items, accounts, revisions, pods, gateway_url
                )
                return Observed(status, single, INFERENCE_SERVICES)
            status = _status(
                model, gateway_url, routes.items, deployments, replica_sets, groups.items, pods
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ClusterError(f"what runs of {model} cannot be read: {error!r}") from error
        trouble = no_services or no_single or no_groups
        if not status.slots and trouble is not None:
            status = status.model_copy(update={"error": trouble})
        return Observed(status, routes, ROUTES)

    def wait_for_change(self, since: Observed, model: str, seconds: float) -> None:
        """Until the model's route changes; see `Reader.wait_for_change`."""
        self._reader.wait_for_change(
            since.watched, self.namespace, {MODEL_LABEL: model}, since.routes, seconds
        )

    def _optional(self, kind: Kind, labels: Mapping[str, str]) -> tuple[Listing, str | None]:
        """The model's objects of a kind that not every identity may read, or why they could not be read."""
        try:
            return self._reader.list(kind, self.namespace, labels), None
        except Forbidden as error:
            return Listing((), ""), error.message


def _status(
    model: str,
    gateway_url: str,
    routes: Iterable[dict[str, Any]],
    deployments: Iterable[dict[str, Any]],
    replica_sets: Iterable[dict[str, Any]],
    groups: Iterable[dict[str, Any]],
    pods: Iterable[dict[str, Any]],
) -> ModelStatus:
    routes, pods = list(routes), list(pods)
    if len(routes) > 1:
        raise ValueError(f"{len(routes)} HTTPRoutes")
    route = routes[0] if routes else None
    loaded = route is not None and carried_out(route) is None
    slots: dict[str, SlotStatus] = {}
    workloads = [*((d, False) for d in deployments), *((g, True) for g in groups)]
    for workload, grouped in workloads:
        slot = slot_of(workload)
        if slot is None:
            continue
        if slot in slots:
            raise ValueError(f"two workloads in slot {slot}")
        own = [pod for pod in pods if slot_of(pod) == slot]
        slots[slot] = (
            group_status(workload, own) if grouped else slot_status(workload, replica_sets, own)
        )
    return ModelStatus(
        model=model,
        commit="",
        generation=route_generation(route) if route is not None and loaded else None,
        gateway_url=gateway_url,
        route=route_status(route) if route is not None else None,
        slots=slots,
    )
