"""The Deployment of a slot: what the candidate puts into the base, and proof that it is still there at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.cluster import CANDIDATE_ANNOTATION, SLOT_LABEL
from lockgate.domain.release_state import Occupant, Slot
from lockgate.errors import RenderingError
from serving.engines.registry import engine as engine_named
from serving.manifests import groups
from serving.manifests.groups import engine_container, pod_templates
from serving.manifests.names import MODEL_MOUNT, MODEL_VOLUME, STOP_MARGIN_SECONDS
from serving.manifests.scalers import scaled
from serving.manifests.weights import model_reference


def deployment_patch(
    named: dict[str, Any], labels: dict[str, str], occupant: Occupant, replicas: int | None
) -> dict[str, Any]:
    """`replicas`: none where a scaler says how many."""
    candidate = occupant.candidate
    serving = candidate.serving
    annotations = {CANDIDATE_ANNOTATION: str(candidate.digest)}
    requests = {"cpu": str(serving.resources.cpu), "memory": serving.resources.memory}
    limits = {"memory": serving.resources.memory}
    if serving.resources.gpu:
        limits[f"nvidia.com/{serving.resources.gpu_resource or 'gpu'}"] = str(serving.resources.gpu)
    engine = engine_named(serving.engine)
    # Lists in a strategic merge patch replace the base's, so what belongs to a constraint is repeated here.
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "matchLabelKeys": ["pod-template-hash"],
            "labelSelector": {"matchLabels": labels},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    volumes: list[dict[str, Any]] = [
        {"name": MODEL_VOLUME, "image": {"reference": str(candidate.model)}}
    ]
    if serving.resources.gpu > 1:
        # Workers of one pod pass tensors through it.
        size = f"{2 + 2 * serving.resources.gpu}Gi"
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    return {
        "metadata": {**named, "annotations": annotations},
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "serviceAccountName": named["name"],
                    "terminationGracePeriodSeconds": serving.pre_stop_seconds
                    + serving.drain_seconds
                    + STOP_MARGIN_SECONDS,
                    "topologySpreadConstraints": spread,
                    "containers": [
                        {
                            "name": engine.name,
                            "image": str(candidate.runtime),
                            "command": engine.command(),
                            "args": expected_arguments(occupant),
                            "env": [
                                {"name": key, "value": value}
                                for key, value in sorted(engine.environment(serving).items())
                            ],
                            "resources": {"requests": requests, "limits": limits},
                            "lifecycle": {
                                "preStop": {"sleep": {"seconds": serving.pre_stop_seconds}}
                            },
                        }
                    ],
                    "volumes": volumes,
                },
            },
        },
    }


def expected_arguments(occupant: Occupant) -> list[str]:
    """The arguments in a pod of this candidate."""
    serving = occupant.candidate.serving
    engine = engine_named(serving.engine)
    return engine.arguments(serving, model_path=MODEL_MOUNT, host="0.0.0.0", port=engine.port)


def check_identity(
    workload: Mapping[str, Any], occupant: Occupant, replicas: int | None = None
) -> None:
    """Raises `RenderingError` unless this Deployment (or group) is the candidate's: its images, its own arguments and
    environment.

    What Lockgate and the base add may be of another version than this one: a candidate keeps what it was attested with.
    `replicas`: also the size that its slot has in the release state; a slot with a scaler names none.
    """
    candidate = occupant.candidate
    serving = candidate.serving
    for found in _read(workload, serving.engine):
        _compare(
            found,
            {
                "candidate": str(candidate.digest),
                "runtime": str(candidate.runtime),
                "model": str(candidate.model),
            },
        )
        if replicas is not None:
            _compare(found, {"replicas": None if scaled(serving, found["slot"]) else replicas})
        own = list(serving.args)
        if own and found["args"][-len(own) :] != own:
            raise RenderingError(
                f"the Deployment's arguments do not end with the candidate's {own}"
            )
        _compare(found["env"], serving.env)


def check_deployment(
    workload: Mapping[str, Any], occupant: Occupant, replicas: int | None = None
) -> None:
    """Raises `RenderingError` unless a newly rendered Deployment (or group) runs exactly what the candidate says, to the letter,
    in `replicas` copies (none: the candidate's own number)."""
    serving = occupant.candidate.serving
    if replicas is None:
        replicas = serving.replicas
    check_identity(workload, occupant, replicas)
    engine = engine_named(serving.engine)
    for found in _read(workload, engine.name):
        _compare(found, {"command": engine.command(), "args": expected_arguments(occupant)})
        _compare(found["env"], engine.environment(serving))


def _read(workload: Mapping[str, Any], engine: str) -> list[dict[str, Any]]:
    """What each of the workload's pod templates says, the workers' without their one argument more."""
    try:
        return [_read_template(workload, t, engine) for t in pod_templates(workload)]
    except (LookupError, TypeError, ValueError) as error:
        raise RenderingError(f"the Deployment lacks what a candidate needs: {error!r}") from error


def _read_template(
    workload: Mapping[str, Any], template: Mapping[str, Any], engine: str
) -> dict[str, Any]:
    container = engine_container(template, engine)
    arguments = list(container["args"])
    if workload["kind"] == groups.KIND and arguments[1:2] == [groups.HEADLESS]:
        del arguments[1]
    return {
        "candidate": template["metadata"]["annotations"][CANDIDATE_ANNOTATION],
        "slot": Slot(template["metadata"]["labels"][SLOT_LABEL]),
        "runtime": container["image"],
        "command": container["command"],
        "args": arguments,
        "model": model_reference(template["spec"]),
        "replicas": workload["spec"].get("replicas"),
        "env": {e["name"]: e.get("value") for e in container.get("env", [])},
    }


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for what, value in wanted.items():
        if found.get(what) != value:
            raise RenderingError(
                f"the Deployment's {what} is {found.get(what)!r}, the candidate's is {value!r}",
                hint="a base, component or environment patch overrides it, or it was edited by hand",
            )
