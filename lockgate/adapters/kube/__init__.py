"""Reads a Kubernetes cluster: what runs of a model, what its gateway carries out, and what the GitOps agent says of itself.

Read-only (get, list and watch): Lockgate changes a cluster through Git alone. What is reported is what live objects say of
themselves, each at the generation it was last observed at; a controller that lags behind makes a slot or a route "not yet",
never "as wanted".
"""

from lockgate.adapters.kube.agents import AgentReport, ArgoCd, Flux, GitOpsAgent, SyncWebhook
from lockgate.adapters.kube.api import Kind, Reader, configured_client
from lockgate.adapters.kube.models import ModelReader

__all__ = [
    "AgentReport",
    "ArgoCd",
    "Flux",
    "GitOpsAgent",
    "Kind",
    "ModelReader",
    "Reader",
    "SyncWebhook",
    "configured_client",
]
