"""Renders a release state: bases and components through kustomize, candidates and weights as data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import MODEL_LABEL, SLOT_LABEL
from lockgate.domain.gitops import dump_yaml, manifests_directory
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.errors import RenderingError
from serving.manifests import kustomize
from serving.manifests.names import namespace, slot_name
from serving.manifests.routes import routed
from serving.manifests.slots import check_deployment, check_identity, deployment_patch

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_APIS = {
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
}


def render(
    state: ReleaseState, repo_root: Path, *, kubectl: Path, fresh: bool = False
) -> dict[str, str]:
    """All manifests of `state`: path in the repository → YAML. A file that is not among them is to be removed.

    `repo_root` is a checkout of the GitOps repository: its `apps/` gives the bases, and what it already holds for a
    candidate is kept. `fresh` renders everything anew (to see what an edit of a base would change). `RenderingError` if a
    base or component is broken, or overrides what the candidate was attested for.
    """
    directory = manifests_directory(state.model, state.environment)
    present = {} if fresh else _read_objects(repo_root / directory)
    files: dict[str, str] = {}
    missing: list[Slot] = []
    for slot in Slot:
        occupant = state.occupant(slot)
        if occupant is None:
            continue
        kept = _kept(present, state.model, slot, occupant)
        files.update(kept)
        if not kept:
            missing.append(slot)

    route_file = _file_name("HTTPRoute", state.model)
    route: dict[str, Any] | None = None
    if not missing and route_file in present:
        route = present[route_file][1]
    else:
        for item in _kustomized(state, missing, repo_root, kubectl):
            if item["kind"] == "HTTPRoute" and item["metadata"]["name"] == state.model:
                route = item
            else:
                files[_file_name(item["kind"], item["metadata"]["name"])] = dump_yaml(item)
    if route is None:
        raise RenderingError(f"apps/*/route renders no HTTPRoute {state.model}")
    files[route_file] = dump_yaml(routed(route, state))
    return {str(directory / name): text for name, text in sorted(files.items())}


def pod_template(
    model: str, environment: str, candidate: Candidate, repo_root: Path, *, kubectl: Path
) -> dict[str, Any]:
    """The pod template that a slot's Deployment of this candidate would have, rendered anew. Errors as of `render`."""
    occupant = Occupant(candidate=candidate, release="test", evidence=candidate.digest)
    state = ReleaseState(
        model=model, environment=environment, phase=Phase.STABLE, a=occupant, stable=Slot.A
    )
    name = slot_name(model, Slot.A)
    (deployment,) = (
        item
        for item in _kustomized(state, [Slot.A], repo_root, kubectl)
        if item["kind"] == "Deployment" and item["metadata"]["name"] == name
    )
    template: dict[str, Any] = deployment["spec"]["template"]
    return template


def _read_objects(directory: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """File name → text and object of what is there. An unreadable file counts as absent and is rendered anew."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(directory.glob("*.yaml")):
        text = path.read_text()
        try:
            item = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            continue
        if isinstance(item, dict):
            found[path.name] = (text, item)
    return found


def _kept(
    present: Mapping[str, tuple[str, dict[str, Any]]], model: str, slot: Slot, occupant: Occupant
) -> dict[str, str]:
    """The slot's files if they are of this candidate, else nothing."""
    deployment = present.get(_file_name("Deployment", slot_name(model, slot)))
    if deployment is None:
        return {}
    try:
        check_identity(deployment[1], occupant)
    except RenderingError:
        return {}
    return {
        name: text
        for name, (text, item) in present.items()
        if (item.get("metadata", {}).get("labels") or {}).get(SLOT_LABEL) == slot.value
    }


def _file_name(kind: str, name: str) -> str:
    return f"{kind.lower()}-{name}.yaml"


def _kustomized(
    state: ReleaseState, slots: list[Slot], repo_root: Path, kubectl: Path
) -> list[dict[str, Any]]:
    """One run of kustomize over the bases of these slots and of the route."""
    with tempfile.TemporaryDirectory(prefix="lockgate-render-") as temporary:
        root = Path(temporary)
        apps = repo_root / "apps"
        if not apps.is_dir():
            raise RenderingError(
                f"{apps} does not exist", hint="lay the repository down with `lockgate init`"
            )
        shutil.copytree(apps, root / "apps")
        resources = []
        app = "vllm"
        for slot in slots:
            occupant = state.occupant(slot)
            assert occupant is not None
            app = occupant.candidate.serving.engine
            _require(root / "apps" / app / "base")
            overlay = root / f"slot-{slot.value}"
            overlay.mkdir()
            _write(overlay, _slot_kustomization(state, slot, occupant, root))
            resources.append(overlay.name)
        _require(root / "apps" / app / "route")
        (root / "route").mkdir()
        _write(root / "route", _route_kustomization(state, app))
        _write(root, {"resources": [*resources, "route"]})
        objects = kustomize.build(root, kubectl=kubectl)
    for slot in slots:
        occupant = state.occupant(slot)
        assert occupant is not None
        name = slot_name(state.model, slot)
        for item in objects:
            if item["kind"] == "Deployment" and item["metadata"]["name"] == name:
                check_deployment(item, occupant)
                break
        else:
            raise RenderingError(f"apps/{app}/base renders no Deployment for {name}")
    return objects


def _require(directory: Path) -> None:
    if not (directory / "kustomization.yaml").is_file():
        relative = PurePosixPath(*directory.parts[-3:])
        raise RenderingError(f"the GitOps repository has no {relative}/kustomization.yaml")


def _write(directory: Path, kustomization: dict[str, Any]) -> None:
    data = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **kustomization,
    }
    (directory / "kustomization.yaml").write_text(dump_yaml(data))


def _patch(kind: str, patch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "target": {"kind": kind},
        "patch": dump_yaml({"apiVersion": _APIS.get(kind, "v1"), "kind": kind, **patch}),
        # The base has a name of its own, which says nothing about any model.
        "options": {"allowNameChange": True},
    }


def _slot_kustomization(
    state: ReleaseState, slot: Slot, occupant: Occupant, root: Path
) -> dict[str, Any]:
    serving = occupant.candidate.serving
    name = slot_name(state.model, slot)
    labels = {
        "app.kubernetes.io/name": state.model,
        MODEL_LABEL: state.model,
        SLOT_LABEL: slot.value,
    }
    named = {"name": name, "labels": labels}
    components = [f"../apps/{serving.engine}/components/gpu"] if serving.resources.gpu else []
    environment = Path("apps", serving.engine, "environments", state.environment)
    if (root / environment / "kustomization.yaml").is_file():
        components.append(f"../{environment.as_posix()}")
    return {
        "namespace": namespace(state.environment),
        "resources": [f"../apps/{serving.engine}/base"],
        "components": components,
        "patches": [
            _patch("Deployment", deployment_patch(named, labels, occupant)),
            _patch("Service", {"metadata": named, "spec": {"selector": labels}}),
            _patch(
                "PodDisruptionBudget",
                {"metadata": named, "spec": {"selector": {"matchLabels": labels}}},
            ),
            _patch("ServiceAccount", {"metadata": named}),
        ],
    }


def _route_kustomization(state: ReleaseState, app: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": state.model, MODEL_LABEL: state.model}
    host = f"{state.model}.{state.environment}.models.internal"
    return {
        "namespace": namespace(state.environment),
        "resources": [f"../apps/{app}/route"],
        "patches": [
            _patch(
                "HTTPRoute",
                {
                    "metadata": {"name": state.model, "labels": labels},
                    "spec": {"hostnames": [host]},
                },
            )
        ],
    }
