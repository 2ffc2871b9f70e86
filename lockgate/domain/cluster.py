"""What a cluster says about itself: the embedded one in the body of `GET /status`, Kubernetes through its API."""

from __future__ import annotations

from pydantic import Field

from lockgate.domain.base import Frozen
from lockgate.domain.release_state import ReleaseState, Slot

MODEL_LABEL = "lockgate.dev/model"
SLOT_LABEL = "lockgate.dev/slot"
CANDIDATE_ANNOTATION = "lockgate.dev/candidate"
FAILOVER_ANNOTATION = "lockgate.dev/failover-slots"
"""On the route: slots that may take all traffic when the other one has no ready replica."""
GENERATION_ANNOTATION = "lockgate.dev/generation"
"""On the route: generation of the release state that it carries out, to be found again on the live object."""
TEMPLATE_ANNOTATION = "lockgate.dev/template"
"""On a version that is one of two in the same object: generation of the state whose commit put it there."""
WANTED_ANNOTATION = "lockgate.dev/wanted"
"""Beside such an object, which cannot carry it: what it asks for, and which candidate and weight each slot has (JSON)."""


class PodStatus(Frozen):
    name: str
    pid: int | None
    url: str | None
    """Base URL of the server, without a path."""
    ready: bool
    since: float
    """Unix time at which `ready` or `state` last changed."""
    state: str
    """`pending`, `starting`, `running`, `backoff` or `terminating`."""
    candidate: str
    template: str
    restarts: int
    cores: tuple[int, ...] = ()
    exclusive_cores: bool = False
    last_exit: str | None = None
    log: str


class SlotStatus(Frozen):
    slot: str
    deployment: str
    candidate: str | None
    """Candidate digest that the manifest asks for; `updated` counts its ready pods."""
    desired: int
    ready: int
    """Ready pods of any template."""
    updated: int
    """Ready pods of the manifest's own template."""
    observed: bool = True
    """Whether who carries it out has looked at the newest manifest: until then the counts are of an older one."""
    restarts: int
    """Crashes and kills of this slot's servers since the slot got its present candidate."""
    pods: tuple[PodStatus, ...] = ()
    refusals: tuple[str, ...] = ()
    """Why pods are not started, or do not stay up, for good: verification failed, crash loop, …"""
    waiting: tuple[str, ...] = ()
    """What pods wait for that may pass by itself: an unreachable store, the next start after a crash."""

    @property
    def settled(self) -> bool:
        """All wanted pods are up, and no other pod is left."""
        return self.updated == self.desired == len(self.pods)


class RouteStatus(Frozen):
    weights: dict[str, int]
    """As committed."""
    effective: dict[str, int]
    """As given to the gateway: a slot without a ready pod gets nothing while another one may take over."""
    version: str
    loaded: bool
    """Whether the gateway's data plane has answered with exactly this version."""
    trouble: str | None = None
    """Why it has not, where the gateway says so."""
    mirrored: str | None = None
    """Slot that gets copies of requests, where an HTTPRoute says so."""
    mirror_rule: int | None = None
    """Place of the rule that says it among the route's rules."""


class Successor(Frozen):
    """The version that an engine with one object for both sends everything to as soon as no share is asked for."""

    generation: int
    """Of the state whose commit put it there."""
    slot: SlotStatus


class ModelStatus(Frozen):
    model: str
    commit: str
    """The commit whose manifests are applied: slots taken up by the agent, route loaded by the gateway."""
    generation: int | None
    """Generation of the release state in that commit: the newest one that the gateway carries out."""
    gateway_url: str
    gateway_error: str | None = None
    route: RouteStatus | None
    slots: dict[str, SlotStatus]
    successor: Successor | None = None
    """None where each version has an object of its own, and while the newest version is not ready."""
    error: str | None = None
    """Why a newer commit's manifests of this model were refused."""


class GatewayStatus(Frozen):
    """Empty where the gateway is not Lockgate's own."""

    pid: int | None = None
    restarts: int = 0
    admin_url: str = ""
    access_log: str = ""
    error: str | None = None


class ClusterStatus(Frozen):
    cluster: str
    pid: int | None = None
    """Of the embedded cluster's agent."""
    started: float | None = None
    environment: str
    remote: str
    branch: str
    head: str | None
    """The last commit that was fetched."""
    synced: str | None
    """The last commit that is applied for every model: what was fetched, unless a model refuses it or is on its way. Of a
    GitOps agent its own word, good for a message and for no decision."""
    fetched: float | None
    """Unix time of the last successful look at the remote."""
    sync_error: str | None
    gateway: GatewayStatus
    models: dict[str, ModelStatus]
    unreadable: dict[str, str] = Field(default_factory=dict)
    """Models of which nothing can be said, and why."""

    def slot(self, model: str, slot: str) -> SlotStatus | None:
        found = self.models.get(model)
        return found.slots.get(slot) if found is not None else None


def lagging(seen: ModelStatus | None, state: ReleaseState) -> tuple[str, ...]:
    """What of `state` is not in force yet; empty where all of it is, or of a later generation.

    Decided from what live objects say of themselves: the route carries the state's generation and its gateway has taken up
    exactly that version, and each occupied slot's workload names its candidate and was looked at by its controller. Whether
    the replicas are ready is another question: a canary that never gets ready is in force all the same.
    """
    if seen is None:
        return (f"the cluster knows nothing of {state.model}",)
    found = []
    if seen.error is not None:
        found.append(seen.error)
    if seen.route is None:
        found.append(f"there is no route for {state.model}")
    elif not seen.route.loaded:
        found.append(seen.route.trouble or "the gateway has not taken up the route")
    elif seen.generation is None or seen.generation < state.generation:
        found.append(f"the route is of generation {seen.generation}, not {state.generation}")
    elif seen.generation > state.generation:
        return tuple(found)
    for slot in Slot:
        found += _slot_lagging(seen.slots.get(slot.value), slot, state)
    return tuple(found)


def _slot_lagging(seen: SlotStatus | None, slot: Slot, state: ReleaseState) -> list[str]:
    occupant = state.occupant(slot)
    if occupant is None:
        stands = seen is not None and seen.candidate is not None
        return [f"slot {slot} is to be empty and is not"] if stands else []
    if seen is None or seen.candidate is None:
        return [f"slot {slot} is empty"]
    if seen.candidate != occupant.candidate.digest:
        return [f"slot {slot} runs {seen.candidate[:19]}, not {occupant.candidate.digest[:19]}"]
    if not seen.observed:
        return [f"slot {slot}: its controller has not looked at the newest manifest"]
    return []
