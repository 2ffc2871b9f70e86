"""Writes docs/access.md: who may reach whom and who may do what, derived from the template as it is rendered.

Run with --check it changes nothing and fails where the page is out of date. Needs kubectl.
"""

from __future__ import annotations

import argparse
import ipaddress
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lockgate.adapters.git import Agent, Layout
from lockgate.adapters.git.layout import arrange
from lockgate.adapters.git.template import template_directory
from lockgate.domain.images import ImageRef
from lockgate.environments import kubectl_path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "access.md"
IMAGE = ImageRef.parse("registry.example.com/lockgate@sha256:" + "1" * 64)
Objects = list[dict[str, Any]]
HEAD = """# Who may reach whom, who may do what

Made by `scripts/make_access_tables.py` from the GitOps template as `lockgate init --cloud eks --agent argocd --env production` (and
`--agent flux`), with `--lockgate-image`, lays it down and kustomize renders it; a test derives both tables anew and compares them with this page and
with a list of its own. Evaluated are the rendered NetworkPolicies and RBAC objects by the rules of their specifications, not a
cluster. "Outside" is what an address block opens: some network plugins apply address blocks to pods as well.
"""


@dataclass(frozen=True)
class Pod:
    """One end of a connection: a pod with labels in a namespace, or an address outside of the cluster."""

    name: str
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.0.0.1"


def _step(name: str, namespace: str = "lockgate") -> Pod:
    return Pod(name, namespace, {"lockgate.dev/step": name})


PODS = (
    Pod("caller outside", address="198.51.100.7"),
    Pod("other pod in the cluster", "default", {"app": "other"}),
    Pod("gateway", "lockgate-gateway", {"app": "envoy"}),
    Pod("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    Pod("slot", "lockgate-production", {"lockgate.dev/slot": "a", "lockgate.dev/model": "m"}),
    Pod("test server", "lockgate-tests", {"lockgate.dev/test-server": "t"}),
    _step("worker"),
    _step("release"),
    _step("prepare"),
    _step("measure"),
    _step("sign", "lockgate-sign"),
    Pod(
        "state metrics",
        "lockgate",
        {"lockgate.dev/step": "metrics", "app.kubernetes.io/name": "lockgate-metrics"},
    ),
    Pod("unlabelled pod of the pipeline", "lockgate", {}),
    Pod("Prefect's server", "prefect", {"app.kubernetes.io/name": "prefect-server"}),
)
DESTINATIONS = (
    *PODS[1:],
    Pod("DNS", "kube-system", {"k8s-app": "kube-dns"}),
    Pod("Envoy Gateway's controller", "envoy-gateway-system", {}),
    Pod("outside", address="203.0.113.5"),
    Pod("node's metadata service", address="169.254.169.254"),
)
PORTS = (("TCP", 22), ("TCP", 53), ("TCP", 80), ("TCP", 443), ("TCP", 4200), ("TCP", 5432), ("TCP", 6443), ("TCP", 8000), ("TCP", 9090),
         ("TCP", 9101), ("TCP", 10443), ("TCP", 15008), ("TCP", 18000), ("TCP", 19001))  # fmt: skip


def rendered(
    layout: Layout, kubectl: Path, *, mtls: bool = False, prometheus: bool = False, prefect: bool = True,
    components: Iterable[str] = (),
) -> Objects:  # fmt: skip
    """Everything of the first environment and its cluster, and what the agent's bootstrap holds. `prometheus`: with its component
    of platform/cluster; `components`: further ones of platform/components; `prefect`: platform/prefect too, which is applied by hand."""
    with tempfile.TemporaryDirectory(prefix="access-") as scratch:
        root = Path(scratch) / "repository"
        shutil.copytree(template_directory(), root)
        arrange(root, layout, "key")
        environment = layout.environments[0]
        cluster = root / "clouds" / str(layout.cloud) / "cluster"
        own = root / "platform/environments" / environment
        if prometheus:
            _take_up(cluster, ["../../../platform/cluster/prometheus"])
        if mtls:
            _take_up(cluster, ["../../../platform/cluster/mtls"])
        chosen = [*(["mtls"] if mtls else []), *components]
        _take_up(own, [f"../../components/{name}" for name in chosen])
        found: Objects = []
        for overlay in (cluster, own, *([root / "platform/prefect"] if prefect else [])):
            done = subprocess.run(
                [str(kubectl), "kustomize", str(overlay)],
                capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            found += list(yaml.safe_load_all(done.stdout))
        for path in sorted((root / "clusters" / environment).rglob("*.yaml")):
            found += list(yaml.safe_load_all(path.read_text()))
    return found


def _take_up(overlay: Path, components: list[str]) -> None:
    """As a person would: one more entry of its `components`."""
    path = overlay / "kustomization.yaml"
    data = yaml.safe_load(path.read_text())
    data["components"] = [*data.get("components", []), *components]
    path.write_text(yaml.safe_dump(data))


def reach(objects: Objects) -> dict[tuple[str, str], tuple[int, ...]]:
    """Ports on which each source may open a connection to each destination; pairs without any are left out."""
    policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
    namespaces = {
        o["metadata"]["name"]: o["metadata"].get("labels", {})
        for o in objects
        if o["kind"] == "Namespace"
    }
    found = {}
    for source in PODS:
        for destination in DESTINATIONS:
            ports = tuple(
                port
                for protocol, port in PORTS
                if source != destination
                and _may(policies, namespaces, "egress", source, destination, protocol, port)
                and _may(policies, namespaces, "ingress", destination, source, protocol, port)
            )
            # Two ends that no policy is about may talk as they like: that is not for this repository to say.
            if ports and not (_free(policies, source) and _free(policies, destination)):
                found[source.name, destination.name] = ports
    return found


def _free(policies: Objects, pod: Pod) -> bool:
    return not any(p["metadata"]["namespace"] == pod.namespace for p in policies)


def _may(
    policies: Objects, namespaces: Mapping[str, Mapping[str, str]], direction: str,
    subject: Pod, peer: Pod, protocol: str, port: int,
) -> bool:  # fmt: skip
    """Whether the policies that select `subject` let it connect to (`egress`), or be reached by (`ingress`), `peer`."""
    selecting = [
        p["spec"]
        for p in policies
        if subject.namespace is not None
        and p["metadata"]["namespace"] == subject.namespace
        and direction in [t.lower() for t in p["spec"]["policyTypes"]]
        and matches(p["spec"]["podSelector"], subject.labels)
    ]
    if not selecting:
        return True
    side = "to" if direction == "egress" else "from"
    return any(
        (not rule.get("ports") or any(_port(entry, protocol, port) for entry in rule["ports"]))
        and (not rule.get(side) or any(_peer(entry, namespaces, subject, peer) for entry in rule[side]))
        for spec in selecting
        for rule in spec.get(direction) or []
    )  # fmt: skip


def _port(entry: Mapping[str, Any], protocol: str, port: int) -> bool:
    return entry.get("protocol", "TCP") == protocol and entry.get("port", port) == port


def _peer(
    entry: Mapping[str, Any], namespaces: Mapping[str, Mapping[str, str]], subject: Pod, peer: Pod
) -> bool:
    if "ipBlock" in entry:
        block, address = entry["ipBlock"], ipaddress.ip_address(peer.address)
        # Network plugins apply address blocks to what is outside of the cluster.
        return (
            peer.namespace is None
            and address in ipaddress.ip_network(block["cidr"])
            and not any(address in ipaddress.ip_network(e) for e in block.get("except", []))
        )
    if peer.namespace is None:
        return False
    labels = {"kubernetes.io/metadata.name": peer.namespace, **namespaces.get(peer.namespace, {})}
    if "namespaceSelector" in entry:
        if not matches(entry["namespaceSelector"], labels):
            return False
    elif peer.namespace != subject.namespace:
        return False
    return matches(entry.get("podSelector", {}), peer.labels)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Kubernetes' label selectors."""
    if any(labels.get(k) != v for k, v in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        value, values = labels.get(expression["key"]), expression.get("values", [])
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]
        if not holds:
            return False
    return True


def rights(objects: Objects) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Verbs by identity (`namespace/account`), place (a namespace, or `cluster`) and resource."""
    roles = {
        (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]): o["rules"]
        for o in objects
        if o["kind"] in ("Role", "ClusterRole")
    }
    found: dict[tuple[str, str, str], set[str]] = {}
    accounts = {
        f"{o['metadata']['namespace']}/{o['metadata']['name']}"
        for o in objects
        if o["kind"] == "ServiceAccount"
    }
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        place = binding["metadata"].get("namespace")
        ref = binding["roleRef"]
        role = (ref["kind"], place if ref["kind"] == "Role" else None, ref["name"])
        built_in = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
        rules = built_in if ref["name"] == "cluster-admin" else roles[role]
        for subject in binding["subjects"]:
            if subject["kind"] != "ServiceAccount":
                raise ValueError(f"{binding['metadata']['name']} binds a {subject['kind']}")
            who = f"{subject['namespace']}/{subject['name']}"
            for rule in rules:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        full = f"{resource}.{group}" if group else resource
                        key = (who, place or "cluster", full)
                        found.setdefault(key, set()).update(rule["verbs"])
    held = {who for who, _, _ in found}
    for who in accounts - held:
        found[who, "", ""] = set()
    return {key: tuple(sorted(verbs)) for key, verbs in sorted(found.items())}


def reach_table(found: Mapping[tuple[str, str], tuple[int, ...]]) -> Iterable[str]:
    yield "| from | to | ports (TCP) |"
    yield "|---|---|---|"
    for (source, destination), ports in found.items():
        yield f"| {source} | {destination} | {', '.join(map(str, ports))} |"


def rights_table(found: Mapping[tuple[str, str, str], tuple[str, ...]]) -> Iterable[str]:
    yield "| identity | where | may | what |"
    yield "|---|---|---|---|"
    merged: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (who, place, resource), verbs in found.items():
        merged.setdefault((who, place, verbs), []).append(resource)
    for (who, place, verbs), resources in merged.items():
        if verbs:
            yield f"| {who} | {place} | {', '.join(verbs)} | {', '.join(resources)} |"
        else:
            yield f"| {who} | nowhere | nothing | |"


def _layout(agent: Agent) -> Layout:
    return Layout(("production",), agent, "eks", lockgate_image=IMAGE)


def page(kubectl: Path) -> str:
    """The whole page."""
    argocd = rendered(_layout("argocd"), kubectl)
    flux = rendered(_layout("flux"), kubectl)
    mesh = rendered(_layout("argocd"), kubectl, mtls=True)
    stored = rendered(_layout("argocd"), kubectl, prometheus=True)
    plain = reach(argocd)
    own = rights(argocd)
    more = {key: verbs for key, verbs in rights(flux).items() if key not in own}
    sections = [
        HEAD,
        "## Connections\n\nNot in the table: not allowed. UDP is open to DNS alone, wherever TCP 53 is. Two ends of which neither "
        "is in one of these namespaces are left out.\n",
        "\n".join(reach_table(plain)),
        "\nWith the component `mtls`, what changes (15008 is the mesh's tunnel, whatever port is meant):\n",
        "\n".join(reach_table({k: v for k, v in reach(mesh).items() if plain.get(k) != v})),
        "\nWith the component `platform/cluster/prometheus`, which the release flow needs where `LOCKGATE_PROMETHEUS_URL` is set, "
        "what comes on top:\n",
        "\n".join(reach_table({k: v for k, v in reach(stored).items() if plain.get(k) != v})),
        "\n## Rights in the cluster\n\nAccounts with nothing are in the table: a pod's identity in the cloud, or none at all.\n",
        "\n".join(rights_table(own)),
        "\nWith Flux in place of Argo CD:\n",
        "\n".join(rights_table(more)),
    ]
    return "\n".join(sections) + "\n"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    text = page(kubectl_path())
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    if check:
        sys.stderr.write("docs/access.md is out of date: run scripts/make_access_tables.py\n")
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
