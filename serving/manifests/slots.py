"""The Deployment of a slot: what the candidate puts into the base, and proof that it is still there at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.cluster import CANDIDATE_ANNOTATION
from lockgate.domain.release_state import Occupant
from lockgate.errors import RenderingError
from serving.engines.registry import engine as engine_named
from serving.manifests.names import MODEL_MOUNT, MODEL_VOLUME, STOP_MARGIN_SECONDS


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


def check_identity(deployment: Mapping[str, Any], occupant: Occupant) -> None:
    """Raises `RenderingError` unless this Deployment is the candidate's: its images, its own arguments and environment.

    What Lockgate and the base add may be of another version than this one: a candidate keeps what it was attested with.
    """
    candidate = occupant.candidate
    serving = candidate.serving
    found = _read(deployment, serving.engine)
    _compare(
        found,
        {
            "candidate": str(candidate.digest),
            "runtime": str(candidate.runtime),
            "model": str(candidate.model),
            "replicas": serving.replicas,
        },
    )
    own = list(serving.args)
    if own and found["args"][-len(own) :] != own:
        raise RenderingError(f"the Deployment's arguments do not end with the candidate's {own}")
    _compare(found["env"], serving.env)


def check_deployment(deployment: Mapping[str, Any], occupant: Occupant) -> None:
    """Raises `RenderingError` unless a newly rendered Deployment runs exactly what the candidate says, to the letter."""
    check_identity(deployment, occupant)
    engine = engine_named(occupant.candidate.serving.engine)
    found = _read(deployment, engine.name)
    _compare(found, {"command": engine.command(), "args": expected_arguments(occupant)})
    _compare(found["env"], engine.environment(occupant.candidate.serving))


def _read(deployment: Mapping[str, Any], container_name: str) -> dict[str, Any]:
    try:
        template = deployment["spec"]["template"]
        spec = template["spec"]
        (container,) = (c for c in spec["containers"] if c["name"] == container_name)
        (volume,) = (v for v in spec["volumes"] if v["name"] == MODEL_VOLUME)
        return {
            "candidate": template["metadata"]["annotations"][CANDIDATE_ANNOTATION],
            "runtime": container["image"],
            "command": container["command"],
            "args": container["args"],
            "model": volume["image"]["reference"],
            "replicas": deployment["spec"]["replicas"],
            "env": {e["name"]: e.get("value") for e in container.get("env", [])},
        }
    except (LookupError, TypeError, ValueError) as error:
        raise RenderingError(f"the Deployment lacks what a candidate needs: {error!r}") from error


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for what, value in wanted.items():
        if found.get(what) != value:
            raise RenderingError(
                f"the Deployment's {what} is {found.get(what)!r}, the candidate's is {value!r}",
                hint="a base, component or environment patch overrides it, or it was edited by hand",
            )
