"""The status types, under the name by which the embedded cluster's users know them."""

from lockgate.domain.cluster import (
    ClusterStatus,
    GatewayStatus,
    ModelStatus,
    PodStatus,
    RouteStatus,
    SlotStatus,
)

__all__ = [
    "ClusterStatus",
    "GatewayStatus",
    "ModelStatus",
    "PodStatus",
    "RouteStatus",
    "SlotStatus",
]
