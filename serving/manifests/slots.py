"""The Deployment of a slot: what the candidate puts into the base, and proof that it is still there at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.release_state import Occupant
from lockgate.errors import RenderingError
from serving.engines.registry import engine as engine_named
from serving.manifests.names import (
    CANDIDATE_ANNOTATION,
    MODEL_MOUNT,
    MODEL_VOLUME,
    STOP_MARGIN_SECONDS,
)


def deployment_patch(
    named: dict[str, Any], labels: dict[str, str], occupant: Occupant
) -> dict[str, Any]:
    candidate = occupant.candidate
    serving = candidate.serving
    annotations = {CANDIDATE_ANNOTATION: str(candidate.digest)}
    requests = {"cpu": str(serving.resources.cpu), "memory": serving.resources.memory}
    limits = {"memory": serving.resources.memory}
    if serving.resources.gpu:
        limits["nvidia.com/gpu"] = str(serving.resources.gpu)
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
    return {
        "metadata": {**named, "annotations": annotations},
        "spec": {
            "replicas": serving.replicas,
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
                    "volumes": [
                        {"name": MODEL_VOLUME, "image": {"reference": str(candidate.model)}}
                    ],
                },
            },
        },
    }


def expected_arguments(occupant: Occupant) -> list[str]:
    """The arguments in a pod of this candidate."""
    serving = occupant.candidate.serving
    engine = engine_named(serving.engine)
    return engine.arguments(serving, model_path=MODEL_MOUNT, host="0.0.0.0", port=engine.port)


def check_deployment(deployment: Mapping[str, Any], occupant: Occupant) -> None:
    """Raises `RenderingError` unless this Deployment runs exactly what the candidate was attested for."""
    candidate = occupant.candidate
    engine = engine_named(candidate.serving.engine)
    try:
        template = deployment["spec"]["template"]
        annotated = template["metadata"]["annotations"][CANDIDATE_ANNOTATION]
        spec = template["spec"]
        (container,) = (c for c in spec["containers"] if c["name"] == engine.name)
        (volume,) = (v for v in spec["volumes"] if v["name"] == MODEL_VOLUME)
        found = {
            "candidate": annotated,
            "runtime": container["image"],
            "command": container["command"],
            "args": container["args"],
            "model": volume["image"]["reference"],
            "replicas": deployment["spec"]["replicas"],
        }
        environment = {e["name"]: e.get("value") for e in container.get("env", [])}
    except (LookupError, TypeError, ValueError) as error:
        raise RenderingError(f"the Deployment lacks what a candidate needs: {error!r}") from error
    wanted = {
        "candidate": str(candidate.digest),
        "runtime": str(candidate.runtime),
        "command": engine.command(),
        "args": expected_arguments(occupant),
        "model": str(candidate.model),
        "replicas": candidate.serving.replicas,
    }
    for what, value in wanted.items():
        if found[what] != value:
            raise RenderingError(
                f"the Deployment's {what} is {found[what]!r}, the candidate's is {value!r}",
                hint="a base, component or environment patch overrides it, or it was edited by hand",
            )
    for name, value in engine.environment(candidate.serving).items():
        if environment.get(name) != value:
            raise RenderingError(
                f"the Deployment's {name} is {environment.get(name)!r}, the candidate's {value!r}"
            )
