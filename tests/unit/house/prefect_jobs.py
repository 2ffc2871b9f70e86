"""The Job that Prefect's Kubernetes worker makes of a run of one of our deployments, by the worker's own code."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

ROOT = Path(__file__).resolve().parents[3]
PLATFORM = ROOT / "gitops_repo_template" / "platform"
DEPLOYED: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
NAMES = [deployed["name"] for deployed in DEPLOYED]
API = "http://prefect-server.prefect.svc.cluster.local:4200/api"
"""What the worker's chart sets. Nothing is asked of it here: the template refers to no block and no variable of the server."""
RUN = UUID("00000000-0000-4000-8000-000000000001")


def template() -> dict[str, Any]:
    """The base job template of the work pool."""
    objects = yaml.safe_load_all((PLATFORM / "prefect" / "workpool.yaml").read_text())
    (found,) = [o for o in objects if o["metadata"]["name"] == "lockgate-workpool"]
    return dict(json.loads(found["data"]["baseJobTemplate.json"]))


@cache
def job(name: str) -> dict[str, Any]:
    """The manifest that the worker would send for a run of the deployment."""
    (deployed,) = [d for d in DEPLOYED if d["name"] == name]
    return asyncio.run(_made(name, deployed["work_pool"]["job_variables"]))


async def _made(name: str, variables: dict[str, Any]) -> dict[str, Any]:
    flow = Flow(id=UUID(int=2), name=name)
    run = FlowRun(id=RUN, flow_id=flow.id, name=f"{name}-run")
    with temporary_settings({PREFECT_API_URL: API}):
        made = await KubernetesWorkerJobConfiguration.from_template_and_values(
            template(), dict(variables), client=PrefectClient(API)
        )
        made.prepare_for_flow_run(run, flow=flow, worker_name="worker")
    return dict(made.job_manifest)


def pod(name: str) -> dict[str, Any]:
    return dict(job(name)["spec"]["template"]["spec"])


def as_stored(manifest: dict[str, Any]) -> dict[str, Any]:
    """What an API server keeps of it: the two fields are none of a pod's, and it drops them with a warning. Prefect's worker
    refuses a manifest without them."""
    kept: dict[str, Any] = json.loads(json.dumps(manifest))
    spec = kept["spec"]["template"]["spec"]
    assert (spec.pop("parallelism"), spec.pop("completions")) == (1, 1)
    return kept


VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
           "projected", "secret"}  # fmt: skip


def restricted_faults(spec: dict[str, Any]) -> list[str]:
    """What the Pod Security Standard `restricted` (v1.35) has against a pod: https://k8s.io/docs/concepts/security/pod-security-standards."""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [str(v) for v in spec.get("volumes", []) if v.keys() - {"name"} - VOLUMES]
    whole = spec.get("securityContext", {})
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = container.get("securityContext", {})
        both, capabilities = whole | own, own.get("capabilities", {})
        wrong = {
            "privileged": own.get("privileged", False),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "runAsNonRoot": both.get("runAsNonRoot") is not True,
            "runAsUser": both.get("runAsUser") == 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type")
            not in ("RuntimeDefault", "Localhost"),
            "capabilities.drop": capabilities.get("drop") != ["ALL"],
            "capabilities.add": set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"},
            "procMount": own.get("procMount", "Default") != "Default",
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
            "sysctls": bool(whole.get("sysctls")),
        }
        found += [f"{container['name']}: {key}" for key, is_wrong in wrong.items() if is_wrong]
    return found
