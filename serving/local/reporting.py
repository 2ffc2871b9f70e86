"""The agent's state as its status."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockgate.domain.cluster import (
    ClusterStatus,
    GatewayStatus,
    ModelStatus,
    RouteStatus,
    SlotStatus,
)
from lockgate.domain.release_state import Slot
from serving.local.envoy_config import GatewayModel, versioned_route
from serving.local.fleet import desired_slot
from serving.ports import LOOPBACK

if TYPE_CHECKING:
    from serving.local.agent import Agent


@dataclass(frozen=True)
class Applied:
    """A commit whose manifests of one model are in force, and the generation of the release state in it."""

    commit: str
    generation: int | None


def cluster_status(agent: Agent) -> ClusterStatus:
    """A snapshot; called in the agent's event loop."""
    config, process = agent.config, agent.gateway.process
    models = sorted(
        {*agent.desired, *agent.errors, *(p.record.model for p in agent.fleet.pods.values())}
    )
    return ClusterStatus(
        cluster=config.cluster,
        pid=os.getpid(),
        started=agent.started,
        environment=config.environment,
        remote=config.remote,
        branch=config.branch,
        head=agent.head,
        synced=agent.synced,
        fetched=agent.fetched,
        sync_error=agent.sync_error,
        gateway=GatewayStatus(
            pid=process.process.pid if process.process is not None else None,
            restarts=process.restarts,
            admin_url=agent.gateway.admin_url,
            access_log=str(agent.gateway.access_log),
            error=process.error or agent.gateway.error,
        ),
        models={model: _model(agent, model) for model in models},
    )


def _model(agent: Agent, model: str) -> ModelStatus:
    slots = {
        slot: _slot(agent, model, slot)
        for slot in Slot
        if desired_slot(agent.desired, model, slot) is not None or agent.fleet.of(model, slot)
    }
    applied = agent.applied.get(model)
    return ModelStatus(
        model=model,
        commit=applied.commit if applied is not None else "",
        generation=applied.generation if applied is not None else None,
        gateway_url=f"http://{LOOPBACK}:{agent.gateway.port(model)}",
        gateway_error=agent.gateway_errors.get(model),
        route=_route(agent, model, list(slots)),
        slots={slot.value: status for slot, status in slots.items()},
        error=agent.errors.get(model),
    )


def _route(agent: Agent, model: str, slots: list[Slot]) -> RouteStatus | None:
    desired = agent.desired.get(model)
    if desired is None:
        return None
    gateway = GatewayModel(
        model=model,
        port=agent.gateway.port(model),
        route=desired.route,
        endpoints={slot: agent.fleet.ready_addresses(model, slot) for slot in slots},
    )
    _, version = versioned_route(gateway)
    return RouteStatus(
        weights={slot.value: weight for slot, weight in desired.route.weights().items()},
        effective={slot.value: weight for slot, weight in gateway.effective().items()},
        version=version,
        loaded=agent.gateway.loaded.get(model) == version,
    )


def _slot(agent: Agent, model: str, slot: Slot) -> SlotStatus:
    wanted, pods = desired_slot(agent.desired, model, slot), agent.fleet.of(model, slot)
    template = wanted.template.digest if wanted is not None and wanted.template else None
    current = [pod for pod in pods if pod.template.digest == template]
    refusals = [pod.refusal for pod in current if pod.refusal]
    if wanted is not None and wanted.refusal:
        refusals.insert(0, wanted.refusal)
    return SlotStatus(
        slot=slot.value,
        deployment=wanted.name if wanted is not None else pods[0].record.deployment,
        candidate=wanted.candidate if wanted is not None else None,
        desired=wanted.replicas if wanted is not None else 0,
        ready=sum(pod.ready for pod in pods),
        updated=sum(pod.ready for pod in current),
        restarts=sum(pod.record.restarts for pod in current),
        pods=tuple(pod.status() for pod in pods),
        refusals=tuple(refusals),
        waiting=tuple(pod.waiting for pod in current if pod.waiting),
    )
