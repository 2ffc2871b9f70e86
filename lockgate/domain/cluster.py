"""What a cluster says about itself: the embedded one in the body of `GET /status`, Kubernetes through its API."""

from __future__ import annotations

from lockgate.domain.base import Frozen

MODEL_LABEL = "lockgate.dev/model"
SLOT_LABEL = "lockgate.dev/slot"
CANDIDATE_ANNOTATION = "lockgate.dev/candidate"
GENERATION_ANNOTATION = "lockgate.dev/generation"
"""On the route: generation of the release state that it carries out, to be found again on the live object."""


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
    error: str | None = None
    """Why a newer commit's manifests of this model were refused."""


class GatewayStatus(Frozen):
    pid: int | None
    restarts: int
    admin_url: str
    access_log: str
    error: str | None = None


class ClusterStatus(Frozen):
    cluster: str
    pid: int
    started: float
    environment: str
    remote: str
    branch: str
    head: str | None
    """The last commit that was fetched."""
    synced: str | None
    """The last commit that is applied for every model: what was fetched, unless a model refuses it or is on its way."""
    fetched: float | None
    """Unix time of the last successful look at the remote."""
    sync_error: str | None
    gateway: GatewayStatus
    models: dict[str, ModelStatus]

    def slot(self, model: str, slot: str) -> SlotStatus | None:
        found = self.models.get(model)
        return found.slots.get(slot) if found is not None else None
