"""A Kubernetes cluster that Argo CD or Flux feeds, as flows and the command line see it.

Read-only: get, list and watch in the environment's namespace, and get of the agent's own objects. What is in force is decided
from the live objects; the agent's word is in the status, for the message to the operator.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from lockgate.adapters.kube import GitOpsAgent, ModelReader, Reader, SyncWebhook
from lockgate.adapters.metrics import ScrapeTarget
from lockgate.domain.cluster import ClusterStatus, GatewayStatus, RouteStatus, SlotStatus, lagging
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.errors import ClusterError
from serving.manifests.names import namespace, slot_name

logger = logging.getLogger(__name__)

WATCH_SECONDS = 2.0
"""The route is watched, being the last object that a commit changes; slots are looked at again this often."""


@dataclass(frozen=True)
class Gateway:
    """How clients and metrics readers find the gateway, as templates."""

    url: str
    """With `{model}` and `{environment}`."""
    metrics_url: str | None = None
    """Page of an Envoy data plane with its statistics in Prometheus' format. A name with several addresses (a headless Service)
    is as many proxies, each read by itself. None: it is not read."""
    cluster: str = ""
    """Envoy's name of a slot's cluster there, with `{service}`, `{namespace}`, `{model}` and `{slot}`."""
    mirror_cluster: str = ""
    """And of the cluster that copies for a slot go to, also with `{rule}`. Empty: they go to the slot's own."""


class KubernetesCluster:
    """One environment's namespace of one cluster."""

    def __init__(
        self,
        environment: str,
        *,
        gateway: Gateway,
        remote: str,
        branch: str = "main",
        agent: GitOpsAgent | None = None,
        webhook: SyncWebhook | None = None,
        reader: Reader | None = None,
    ) -> None:
        """Nothing is contacted yet. `agent`: whose word a status tells; `webhook`: None, the agent looks by itself."""
        self.environment = environment
        self._gateway = gateway
        self._remote = remote
        self._branch = branch
        self._agent = agent
        self._webhook = webhook
        self._reader = reader or Reader()
        self._models = ModelReader(self._reader, namespace(environment))

    def status(self) -> ClusterStatus:
        models, unreadable = {}, {}
        for name in sorted(self._models.models()):
            try:
                models[name] = self._models.observe(name, self._url(name)).status
            except ClusterError as error:
                # One model's broken objects keep nobody from seeing the others.
                logger.warning("%s", error.message)
                unreadable[name] = error.message
        head, synced, trouble = None, None, None
        if self._agent is not None:
            try:
                report = self._agent.report(self._reader)
                head, synced, trouble = report.seen, report.applied, report.trouble
            except ClusterError as error:
                # Only a word less for the operator.
                trouble = f"the GitOps agent cannot be asked: {error.message}"
        return ClusterStatus(
            cluster=self._reader.host,
            environment=self.environment,
            remote=self._remote,
            branch=self._branch,
            head=head,
            synced=synced,
            fetched=None,
            sync_error=trouble,
            gateway=GatewayStatus(),
            models=models,
            unreadable=unreadable,
        )

    def slot_status(self, model: str, slot: Slot | str) -> SlotStatus | None:
        return self._models.observe(model, self._url(model)).status.slots.get(str(slot))

    def carry_out(self, commit: str, state: ReleaseState, *, timeout_seconds: float) -> bool:
        """See `Cluster.carry_out`. A webhook that fails is an error only where nothing comes in time without it."""
        deadline = time.monotonic() + timeout_seconds
        refused: ClusterError | None = None
        if self._webhook is not None:
            try:
                self._webhook.ask(commit)
            except ClusterError as error:
                refused = error
        while True:
            seen = self._models.observe(state.model, self._url(state.model))
            if not lagging(seen.status, state):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._models.wait_for_change(seen, state.model, min(left, WATCH_SECONDS))
        if refused is not None:
            raise refused
        return False

    def gateway_url(self, model: str) -> str:
        if model not in self._models.models():
            raise ClusterError(
                f"nothing of {model} was deployed to {self._models.namespace} yet",
                hint="a release deploys it",
            )
        return self._url(model)

    def scrape_targets(
        self, model: str, status: ClusterStatus | None = None
    ) -> tuple[ScrapeTarget, ...]:
        """See `Cluster.scrape_targets`. Pods are read at their own addresses: a reader outside of the cluster's network, or
        one that the namespace's policies do not admit, reads from Prometheus instead."""
        found = (
            self._models.observe(model, self._url(model)).status
            if status is None
            else status.models.get(model)
        )
        if found is None:
            return ()
        targets = []
        pages = _pages(self._gateway.metrics_url) if self._gateway.metrics_url is not None else {}
        for name, slot in found.slots.items():
            for pod in slot.pods:
                if pod.state != "terminating":
                    url = f"{pod.url}/metrics" if pod.url is not None else None
                    targets.append(ScrapeTarget(pod.name, name, url))
            for kind, cluster in self._envoy_clusters(model, name, found.route):
                targets += [
                    ScrapeTarget(f"gateway-{name}{kind}{proxy}", name, url, cluster)
                    for proxy, url in pages.items()
                ]
        return tuple(targets)

    def _envoy_clusters(
        self, model: str, slot: str, route: RouteStatus | None
    ) -> Iterator[tuple[str, str]]:
        """The gateway's clusters of a slot, by what tells them apart: its own, and that of the copies it gets."""
        names = {
            "service": slot_name(model, Slot(slot)), "namespace": self._models.namespace,
            "model": model, "slot": slot,
        }  # fmt: skip
        yield "", self._gateway.cluster.format(**names)
        if self._gateway.mirror_cluster and route is not None and route.mirrored == slot:
            yield "-copies", self._gateway.mirror_cluster.format(**names, rule=route.mirror_rule)

    def _url(self, model: str) -> str:
        return self._gateway.url.format(model=model, environment=self.environment).rstrip("/")


def _pages(url: str) -> dict[str, str]:
    """The page of each proxy behind a name, by what tells them apart: counters of two proxies are no one's counters. A name that
    has one address, or none that can be found now, stays as it is."""
    whole = httpx.URL(url)
    try:
        found = socket.getaddrinfo(whole.host, whole.port or 80, type=socket.SOCK_STREAM)
    except OSError:
        return {"": url}
    addresses = sorted({str(entry[4][0]) for entry in found})
    if whole.scheme != "http" or len(addresses) < 2:
        return {"": url}
    return {f"-{address}": str(whole.copy_with(host=address)) for address in addresses}
