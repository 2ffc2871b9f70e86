"""What a driver needs of the cluster that serves: one interface, whatever stands behind it.

`serving.local.cluster` is the embedded cluster, `serving.kubernetes_cluster` a Kubernetes cluster that Argo CD or Flux feeds.
Both are changed through Git alone; here they are looked at, and asked to look at Git now.
"""

from __future__ import annotations

from typing import Protocol

from lockgate.adapters.metrics import ScrapeTarget
from lockgate.domain.cluster import ClusterStatus, SlotStatus
from lockgate.domain.release_state import ReleaseState, Slot


class Cluster(Protocol):
    """All of it raises `ClusterError` if the cluster cannot be asked."""

    def status(self) -> ClusterStatus:
        """Every model's slots and route as they are now."""

    def slot_status(self, model: str, slot: Slot | str) -> SlotStatus | None:
        """None if the slot is empty, or the model unknown."""

    def carry_out(self, commit: str, state: ReleaseState, *, timeout_seconds: float) -> bool:
        """Asks the agent to look at Git now, and waits until `state`, which `commit` holds, is in force. Whether it was, or a
        later one, in time: workloads of the slots taken up by their controllers, route loaded by its gateway. That the
        replicas are ready is not part of it."""

    def gateway_url(self, model: str) -> str:
        """Base URL of the model's gateway, without `/v1`."""

    def scrape_targets(
        self, model: str, status: ClusterStatus | None = None
    ) -> tuple[ScrapeTarget, ...]:
        """Metrics endpoints of the model's slots: every server, and the gateway's view of each slot where it has one."""
