"""Renders a release state: bases and components through kustomize, candidates and weights as data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import CANDIDATE_ANNOTATION, MODEL_LABEL, SLOT_LABEL
from lockgate.domain.gitops import dump_yaml, manifests_directory
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.errors import RenderingError
from serving.manifests import groups, kserve, kustomize
from serving.manifests.groups import workload_kind
from serving.manifests.inference_service import OTHER
from serving.manifests.kserve_parts import twin
from serving.manifests.names import namespace, slot_name
from serving.manifests.routes import routed
from serving.manifests.scalers import SCALER_KINDS, scaled, scaler
from serving.manifests.slots import check_deployment, check_identity, deployment_patch
from serving.manifests.weights import settle

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_APIS = {
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "VerticalPodAutoscaler": "autoscaling.k8s.io/v1",
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
    if kserve.runs(state):
        return kserve.render_services(
            state, present,
            lambda c: slot_objects(state.model, state.environment, c, repo_root, kubectl=kubectl),
        )  # fmt: skip
    files: dict[str, str] = {}
    missing: list[Slot] = []
    scalers: dict[str, str] = {}
    for slot in (Slot.A, Slot.B):
        occupant = state.occupant(slot)
        if occupant is None:
            continue
        kept = _kept(present, state, slot, occupant)
        files.update(kept)
        if not kept:
            missing.append(slot)
        made = scaler(state, slot)
        if made is not None:
            scalers[_file_name(made["kind"], made["metadata"]["name"])] = dump_yaml(made)

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
    if state.fresh_baseline:
        files.update(_baseline(files, state))
    if route is None:
        raise RenderingError(f"apps/*/route renders no HTTPRoute {state.model}")
    files |= scalers
    files[route_file] = dump_yaml(routed(route, state))
    return {str(directory / name): text for name, text in sorted(files.items())}


def pod_template(
    model: str, environment: str, candidate: Candidate, repo_root: Path, *, kubectl: Path
) -> dict[str, Any]:
    """The pod template that a slot's Deployment of this candidate would have, rendered anew: where KServe serves it, that of a
    server without KServe. Errors as of `render`."""
    name = slot_name(model, Slot.A)
    if groups.grouped(candidate.serving):
        raise RenderingError(
            "a test Job runs one pod, and this candidate's replica spans several nodes",
            hint="measure it with `compare: limits` behind its own endpoint, or on one node with larger GPUs",
        )
    (deployment,) = (
        item
        for item in slot_objects(model, environment, twin(candidate), repo_root, kubectl=kubectl)
        if item["kind"] == "Deployment" and item["metadata"]["name"] == name
    )
    template: dict[str, Any] = deployment["spec"]["template"]
    template["metadata"]["annotations"][CANDIDATE_ANNOTATION] = str(candidate.digest)
    return template


def slot_objects(
    model: str, environment: str, candidate: Candidate, repo_root: Path, *, kubectl: Path
) -> list[dict[str, Any]]:
    """Slot `a` with this candidate and the route without its rules, or what KServe has in their place; rendered anew. Errors as
    of `render`."""
    occupant = Occupant(candidate=candidate, release="test", evidence=candidate.digest)
    state = ReleaseState(
        model=model, environment=environment, phase=Phase.STABLE, a=occupant, stable=Slot.A
    )
    if kserve.runs(state):
        files = render(state, repo_root, kubectl=kubectl, fresh=True)
        return [yaml.load(text, Loader=_Loader) for text in files.values()]
    return _kustomized(state, [Slot.A], repo_root, kubectl)


def _read_objects(directory: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """File name → text and object of what is there. An unreadable file counts as absent and is rendered anew."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted((*directory.glob("*.yaml"), *directory.glob(f"*.yaml{OTHER}"))):
        text = path.read_text()
        try:
            item = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            continue
        if isinstance(item, dict):
            found[path.name] = (text, item)
    return found


def _kept(
    present: Mapping[str, tuple[str, dict[str, Any]]],
    state: ReleaseState,
    slot: Slot,
    occupant: Occupant,
) -> dict[str, str]:
    """The slot's files if they are of this candidate, in the size that the slot has now; else nothing. A scaler follows the state
    and is never kept."""
    serving = occupant.candidate.serving
    file = _file_name(workload_kind(serving), slot_name(state.model, slot))
    deployment = present.get(file)
    if deployment is None:
        return {}
    try:
        check_identity(deployment[1], occupant)
    except RenderingError:
        return {}
    replicas = state.replicas(slot)
    files = {
        name: text
        for name, (text, item) in present.items()
        if (item.get("metadata", {}).get("labels") or {}).get(SLOT_LABEL) == slot.value
        and item["kind"] not in SCALER_KINDS
    }
    spec = deployment[1]["spec"]
    if not scaled(serving, slot) and spec["replicas"] != replicas:
        files[file] = dump_yaml({**deployment[1], "spec": {**spec, "replicas": replicas}})
    return files


def _baseline(files: Mapping[str, str], state: ReleaseState) -> dict[str, str]:
    """The fresh baseline: the objects of the stable candidate's slot, as that was released, under the baseline's name."""
    original = next(
        s for s in (Slot.A, Slot.B) if state.occupant(s) == state.occupant(Slot.BASELINE)
    )
    names = {slot_name(state.model, original): slot_name(state.model, Slot.BASELINE)}
    copies = {}
    for text in files.values():
        item = yaml.load(text, Loader=_Loader)
        if (item["metadata"].get("labels") or {}).get(SLOT_LABEL) != original.value:
            continue
        item = _renamed(item, names)
        if item["kind"] in ("Deployment", groups.KIND):
            item["spec"]["replicas"] = state.replicas(Slot.BASELINE)
        copies[_file_name(item["kind"], item["metadata"]["name"])] = dump_yaml(item)
    return copies


def _renamed(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, dict):
        return {
            key: Slot.BASELINE.value if key == SLOT_LABEL else _renamed(value, names)
            for key, value in data.items()
        }
    if isinstance(data, list):
        return [_renamed(item, names) for item in data]
    return names.get(data, data) if isinstance(data, str) else data


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
        if (repo_root / "clouds").is_dir():
            shutil.copytree(repo_root / "clouds", root / "clouds")
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
        for place, item in enumerate(objects):
            if item["kind"] == "Deployment" and item["metadata"]["name"] == name:
                serving = occupant.candidate.serving
                settle(item["spec"]["template"]["spec"], occupant.candidate.model)
                if groups.grouped(serving):
                    labels = item["spec"]["selector"]["matchLabels"]
                    item = objects[place] = groups.leader_worker_set(item, serving)
                    objects.append(groups.group_policy(item, labels))
                check_deployment(item, occupant, state.replicas(slot))
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
    serves = {**labels, **(groups.LEADER if groups.grouped(serving) else {})}
    replicas = None if scaled(serving, slot) else state.replicas(slot)
    components = [f"../apps/{serving.engine}/components/gpu"] if serving.resources.gpu else []
    environment = Path("apps", serving.engine, "environments", state.environment)
    if (root / environment / "kustomization.yaml").is_file():
        components.append(f"../{environment.as_posix()}")
    if serving.resources.gpu and (root / environment / "gpu" / "kustomization.yaml").is_file():
        components.append(f"../{environment.as_posix()}/gpu")
    return {
        "namespace": namespace(state.environment),
        "resources": [f"../apps/{serving.engine}/base"],
        "components": components,
        "patches": [
            _patch("Deployment", deployment_patch(named, labels, occupant, replicas)),
            _patch("Service", {"metadata": named, "spec": {"selector": serves}}),
            _patch(
                "PodDisruptionBudget",
                {"metadata": named, "spec": {"selector": {"matchLabels": labels}}},
            ),
            _patch("ServiceAccount", {"metadata": named}),
            # Of components; a patch without a target does nothing.
            _patch("VerticalPodAutoscaler", vertical_patch(named, workload_kind(serving))),
            _patch("PersistentVolumeClaim", {"metadata": named}),
        ],
    }


def vertical_patch(named: dict[str, Any], kind: str) -> dict[str, Any]:
    """What a VerticalPodAutoscaler of the slot looks at."""
    target = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1" if kind == groups.KIND else "apps/v1",
        "kind": kind,
        "name": named["name"],
    }
    return {"metadata": named, "spec": {"targetRef": target}}


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
