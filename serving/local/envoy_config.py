"""Envoy's configuration (xDS v3) from the desired routes and the ready endpoints. Pure: data in, data out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Slot
from serving.local.desired import DesiredRoute, RouteRule
from serving.manifests.names import SLOT_HEADER
from serving.ports import LOOPBACK

PROBE_HEADER = "x-lockgate-route-probe"
"""A request with it is answered by the gateway itself, with the version of the route table in use."""
_TYPE = "type.googleapis.com/"
_UPSTREAM_IDLE = "3s"
"""Shorter than any server keeps an idle connection: a request never meets one that is just being closed."""
_LIMIT = 1_000_000
_CHECK = {
    # A connection and nothing more: a server that is merely busy has it accepted by its kernel, a dead one refuses it. Whether
    # it answers in time is its probes' affair.
    "tcp_health_check": {},
    "interval": "0.25s",
    "no_traffic_interval": "0.25s",
    "timeout": "5s",
    "unhealthy_threshold": 1,
    "healthy_threshold": 1,
}
_RETRY = {
    # Only where no connection came about, so that nothing was sent: an answer is never begun twice. Together they take a
    # little longer than the gateway needs to see that a server is dead.
    "retry_on": "connect-failure",
    "num_retries": 4,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.3s"},
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": f"{_TYPE}envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": 3,
}
_METADATA = "lockgate"

Address = tuple[str, int]


def cluster_name(model: str, slot: Slot) -> str:
    """Envoy's cluster of a slot; the `envoy_cluster_name` label of its statistics."""
    return f"{model}-{slot.value}"


def failover_name(model: str, slot: Slot, other: Slot) -> str:
    """Envoy's cluster that is the slot's while that has a server, and the other slot's while it has none."""
    return f"{cluster_name(model, slot)}+{other.value}"


@dataclass(frozen=True)
class GatewayModel:
    """What the gateway has to do for one model."""

    model: str
    port: int
    route: DesiredRoute | None
    endpoints: Mapping[Slot, tuple[Address, ...]]
    """Ready servers by slot; a slot without one is there all the same."""

    def effective(self) -> dict[Slot, int]:
        """The default rule's weights, with slots that nobody serves left out while another may take over.

        Without a ready slot that may, the committed weights stay: the gateway then answers 503 for their share.
        """
        if self.route is None:
            return {}
        return effective_weights(self.route.weights(), self._ready(), self.route.failover)

    def routed_to(self, slot: Slot) -> str:
        """The Envoy cluster for the slot's share of the users' requests. Where the other slot may take over, the gateway sees
        to that by itself: the agent, which moves weights, may be dead too."""
        if self.route is None:
            return cluster_name(self.model, slot)
        weights = self.route.weights()
        others = [s for s in self.route.failover if s is not slot and s in self.endpoints]
        if not others:
            return cluster_name(self.model, slot)
        return failover_name(self.model, slot, max(others, key=lambda s: weights.get(s, 0)))

    def _ready(self) -> set[Slot]:
        return {slot for slot, addresses in self.endpoints.items() if addresses}


def effective_weights(
    weights: Mapping[Slot, int], ready: set[Slot], failover: Sequence[Slot]
) -> dict[Slot, int]:
    """Committed weights (percent) moved away from slots that are not ready, to weighted ones, else to `failover` ones."""
    wanted = {slot: weight for slot, weight in weights.items() if weight}
    served = {slot: weight for slot, weight in wanted.items() if slot in ready}
    if not wanted or served == wanted:
        return wanted
    if served:
        total = sum(served.values())
        return {slot: round(100 * weight / total) for slot, weight in served.items()}
    spare = [slot for slot in failover if slot in ready]
    return dict.fromkeys(spare, 100) if spare else wanted


def route_configuration(model: GatewayModel) -> dict[str, Any]:
    """The RDS resource, without its version."""
    rules = model.route.rules if model.route is not None else ()
    routes = [route for rule in rules for route in _routes(model, rule)]
    routes.append(_direct(503, f"no slot of {model.model} has weight"))
    return {
        "@type": f"{_TYPE}envoy.config.route.v3.RouteConfiguration",
        "name": model.model,
        "virtual_hosts": [{"name": model.model, "domains": ["*"], "routes": routes}],
    }


def versioned_route(model: GatewayModel) -> tuple[dict[str, Any], str]:
    """The RDS resource with a route that tells its own version, and that version."""
    configuration = route_configuration(model)
    version = Digest.of_json(configuration).hex[:16]
    probe = _direct(200, version)
    probe["match"]["headers"] = [{"name": PROBE_HEADER, "present_match": True}]
    configuration["virtual_hosts"][0]["routes"].insert(0, probe)
    return configuration, version


def _direct(status: int, body: str) -> dict[str, Any]:
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": status, "body": {"inline_string": body}},
    }


def _routes(model: GatewayModel, rule: RouteRule) -> list[dict[str, Any]]:
    weights = dict(rule.weights)
    if not rule.headers:
        weights = model.effective()
    clusters = [
        {
            "name": cluster_name(model.model, slot) if rule.headers else model.routed_to(slot),
            "weight": weight,
            "response_headers_to_add": [
                {
                    # The slot that answered, whichever it was meant for.
                    "header": {
                        "key": SLOT_HEADER,
                        "value": f"%UPSTREAM_METADATA({_METADATA}:slot)%",
                    },
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            ],
        }
        for slot, weight in weights.items()
        if weight > 0
    ]
    if not clusters:
        return []
    match: dict[str, Any] = {"prefix": rule.prefix}
    if rule.headers:
        match["headers"] = [
            {"name": name, "string_match": {"exact": value}} for name, value in rule.headers
        ]
    action: dict[str, Any] = {
        "weighted_clusters": {"clusters": clusters},
        "timeout": f"{rule.timeout_seconds:g}s",
        "idle_timeout": "0s",
        "retry_policy": _RETRY,
    }
    if rule.mirrors:
        action["request_mirror_policies"] = [
            {
                "cluster": cluster_name(model.model, slot),
                "runtime_fraction": {
                    "default_value": {"numerator": round(percent * 10000), "denominator": "MILLION"}
                },
            }
            for slot, percent in rule.mirrors
        ]
    return [{"match": match, "route": action}]


def listener(model: GatewayModel, *, routes: Path, access_log: Path) -> dict[str, Any]:
    """The LDS resource: one port a model. `routes` is the RDS file."""
    manager = {
        "@type": f"{_TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"gateway_{model.model}",
        "rds": {"route_config_name": model.model, "config_source": _file(routes)},
        # A stream may be silent for as long as the model thinks.
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "600s"},
        "access_log": [_access_log(model.model, access_log)],
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "@type": f"{_TYPE}envoy.config.listener.v3.Listener",
        "name": model.model,
        "address": _address((LOOPBACK, model.port)),
        # Two gateways on one port would each get a part of the requests; better an error.
        "enable_reuse_port": False,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def _access_log(model: str, path: Path) -> dict[str, Any]:
    """One JSON object a request that a slot or the gateway answered; probes of the gateway are left out."""
    return {
        "name": "envoy.access_loggers.file",
        "filter": {
            "header_filter": {
                "header": {"name": PROBE_HEADER, "present_match": True, "invert_match": True}
            }
        },
        "typed_config": {
            "@type": f"{_TYPE}envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {
                "json_format": {
                    "time": "%START_TIME(%s.%6f)%",
                    "model": model,
                    "cluster": "%UPSTREAM_CLUSTER%",
                    # That of the server, where one answered in the place of another slot.
                    "slot": f"%UPSTREAM_METADATA({_METADATA}:slot)%",
                    "upstream": "%UPSTREAM_HOST%",
                    "path": "%REQ(:PATH)%",
                    "forced": f"%REQ({SLOT_HEADER})%",
                    "status": "%RESPONSE_CODE%",
                    "flags": "%RESPONSE_FLAGS%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    # Microseconds. vLLM sends a stream's headers before its first token: the body counts.
                    "headers_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%",
                    "ttfb_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
                    "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
                    "bytes_in": "%BYTES_RECEIVED%",
                    "bytes_out": "%BYTES_SENT%",
                }
            },
        },
    }


def cluster(name: str, *, endpoints: Path) -> dict[str, Any]:
    """The CDS resource of one slot. `endpoints` is its EDS file: servers come and go without touching the cluster."""
    unlimited = {
        "max_connections": _LIMIT,
        "max_pending_requests": _LIMIT,
        "max_requests": _LIMIT,
    }
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "@type": f"{_TYPE}envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": name, "eds_config": _file(endpoints)},
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        # With no server that the gateway has seen alive, and no other slot that may take over, it tries the ones it was told of:
        # a new one may have been ready before the gateway's first look at it.
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 1},
            # By default what a check found within a second of another change waits for that second to end.
            "update_merge_window": "0s",
        },
        "health_checks": [_CHECK],
        # What the agent withdraws is gone at once, in good health or not.
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {"thresholds": [unlimited]},
        "typed_extension_protocol_options": {
            options: {
                "@type": f"{_TYPE}{options}",
                "common_http_protocol_options": {"idle_timeout": _UPSTREAM_IDLE},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def failover_cluster(model: str, slot: Slot, other: Slot) -> dict[str, Any]:
    """The CDS resource of a slot with another one behind it.

    Envoy counts requests (`upstream_rq_total`) by the cluster of the server that gets them, and status classes
    (`upstream_rq_xx`) by the cluster that the route names: those of a share that fails over stay with the slot it was meant
    for. They are the same but for the moments between a server's death and the agent's change of the weights.
    """
    name = failover_name(model, slot, other)
    config = "envoy.extensions.clusters.aggregate.v3.ClusterConfig"
    return {
        "@type": f"{_TYPE}envoy.config.cluster.v3.Cluster",
        "name": name,
        "alt_stat_name": cluster_name(model, slot),
        "connect_timeout": "2s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": f"{_TYPE}{config}",
                "clusters": [cluster_name(model, s) for s in (slot, other)],
            },
        },
    }


def load_assignment(name: str, addresses: Sequence[Address]) -> dict[str, Any]:
    """The EDS resource of one slot."""
    slot = name.rpartition("-")[2]
    metadata = {"filter_metadata": {_METADATA: {"slot": slot}}}
    return {
        "@type": f"{_TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        # One live server keeps the whole share in its slot; by default a part of it would go to the other one.
        "policy": {"overprovisioning_factor": 100_000},
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": _address(a)}, "metadata": metadata}
                    for a in sorted(addresses)
                ]
            }
        ],
    }


def discovery(resources: Sequence[Mapping[str, Any]], version: str | None = None) -> dict[str, Any]:
    """A DiscoveryResponse file."""
    content = list(resources)
    return {"version_info": version or Digest.of_json(content).hex[:16], "resources": content}


def bootstrap(*, node: str, admin_port: int, listeners: Path, clusters: Path) -> dict[str, Any]:
    """Envoy's start-up file: everything else comes from watched files."""
    return {
        "node": {"id": node, "cluster": "lockgate"},
        "admin": {
            "address": _address((LOOPBACK, admin_port)),
        },
        "dynamic_resources": {"lds_config": _file(listeners), "cds_config": _file(clusters)},
    }


def _file(path: Path) -> dict[str, Any]:
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(path),
            "watched_directory": {"path": str(path.parent)},
        },
    }


def _address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}
