"""What the manifests of a commit ask for, as far as this cluster can do it.

Whatever a manifest says that cannot be honoured here (a Secret, an init container, another kind of probe) is refused by
name: a pod that runs without something it asked for would be another candidate than the one that was attested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.domain.cluster import CANDIDATE_ANNOTATION, FAILOVER_ANNOTATION, SLOT_LABEL
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.errors import ClusterError, LockgateError
from serving.engines.registry import engine as engine_named
from serving.manifests.names import MODEL_VOLUME
from serving.manifests.slots import check_identity

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
_CPU = re.compile(r"(\d+)(m?)")
_UNSUPPORTED_POD = ("initContainers", "hostNetwork", "hostPID", "ephemeralContainers")
_UNSUPPORTED_CONTAINER = ("envFrom", "volumeDevices", "workingDir")


@dataclass(frozen=True)
class Probe:
    """An HTTP probe; seconds, with Kubernetes' defaults."""

    path: str
    initial_delay: float
    period: float
    timeout: float
    failures: int
    successes: int

    @classmethod
    def parse(cls, data: Mapping[str, Any] | None) -> Probe | None:
        if data is None:
            return None
        if "httpGet" not in data:
            raise ClusterError("only httpGet probes are supported")
        return cls(
            path=data["httpGet"].get("path", "/"),
            initial_delay=data.get("initialDelaySeconds", 0),
            period=data.get("periodSeconds", 10),
            timeout=data.get("timeoutSeconds", 1),
            failures=data.get("failureThreshold", 3),
            successes=data.get("successThreshold", 1),
        )


@dataclass(frozen=True)
class Mount:
    path: str
    volume: str
    is_model: bool


@dataclass(frozen=True)
class PodTemplate:
    """One pod's process. `digest` covers the whole template as written: any change of it is another pod."""

    digest: Digest
    engine: str
    candidate: Digest
    runtime: ImageRef
    model: ImageRef
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    mounts: tuple[Mount, ...]
    cpu: int
    gpu: int
    startup: Probe | None
    readiness: Probe | None
    liveness: Probe | None
    pre_stop_seconds: float
    grace_seconds: float

    @classmethod
    def parse(cls, template: Mapping[str, Any]) -> PodTemplate:
        """From `spec.template` of a Deployment. `ClusterError` for what cannot be honoured."""
        try:
            return cls._parse(template)
        except LockgateError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ClusterError(f"the pod template cannot be read: {error!r}") from error

    @classmethod
    def _parse(cls, template: Mapping[str, Any]) -> PodTemplate:
        spec = template["spec"]
        _refuse(spec, _UNSUPPORTED_POD)
        (container,) = spec["containers"]
        _refuse(container, _UNSUPPORTED_CONTAINER)
        engine = engine_named(container["name"])
        if container.get("command", engine.command()) != engine.command():
            raise ClusterError(f"the container's command is not {engine.name}'s")
        volumes = {v["name"]: v for v in spec.get("volumes", [])}
        model = ImageRef.parse(volumes[MODEL_VOLUME]["image"]["reference"])
        lifecycle = container.get("lifecycle", {})
        resources = container.get("resources", {})
        requests = {**resources.get("limits", {}), **resources.get("requests", {})}
        slices = [name for name in requests if "/" in name and name != "nvidia.com/gpu"]
        if slices:
            raise ClusterError(f"{slices[0]} is not supported by the embedded cluster")
        return cls(
            digest=Digest.of_json(template),
            engine=engine.name,
            candidate=Digest(template["metadata"]["annotations"][CANDIDATE_ANNOTATION]),
            runtime=ImageRef.parse(container["image"]),
            model=model,
            args=tuple(container.get("args", ())),
            env=tuple(_variable(item) for item in container.get("env", [])),
            mounts=tuple(_mount(m, volumes[m["name"]]) for m in container.get("volumeMounts", [])),
            cpu=_cores(str(requests.get("cpu", "1"))),
            gpu=int(requests.get("nvidia.com/gpu", 0)),
            startup=Probe.parse(container.get("startupProbe")),
            readiness=Probe.parse(container.get("readinessProbe")),
            liveness=Probe.parse(container.get("livenessProbe")),
            pre_stop_seconds=_pre_stop(lifecycle),
            grace_seconds=float(spec.get("terminationGracePeriodSeconds", 30)),
        )


@dataclass(frozen=True)
class DesiredSlot:
    """A slot's Deployment. `refusal` says why nothing new may be started for it; what runs stays."""

    slot: Slot
    name: str
    replicas: int
    max_surge: int
    max_unavailable: int
    template: PodTemplate | None
    raw_template: Mapping[str, Any]
    candidate: str | None
    refusal: str | None = None


@dataclass(frozen=True)
class RouteRule:
    """One rule of the HTTPRoute: backends by slot with weights, behind exact header matches."""

    headers: tuple[tuple[str, str], ...]
    prefix: str
    weights: tuple[tuple[Slot, int], ...]
    timeout_seconds: float
    mirrors: tuple[tuple[Slot, float], ...] = ()
    """Slots that get a copy, each with its percentage."""


@dataclass(frozen=True)
class DesiredRoute:
    rules: tuple[RouteRule, ...]
    failover: tuple[Slot, ...]

    def weights(self) -> dict[Slot, int]:
        """Of the rule that takes what no header forces."""
        for rule in self.rules:
            if not rule.headers:
                return dict(rule.weights)
        return {}


@dataclass(frozen=True)
class DesiredModel:
    model: str
    slots: tuple[DesiredSlot, ...]
    route: DesiredRoute


def read_model(
    model: str, objects: Iterable[Mapping[str, Any]], state: ReleaseState | None
) -> DesiredModel:
    """The model that these manifests describe. `ClusterError` if they contradict themselves.

    `state` is the release state of the same commit: a Deployment that is not its candidate's is refused.
    """
    try:
        by_kind: dict[str, list[Mapping[str, Any]]] = {}
        for item in objects:
            by_kind.setdefault(item["kind"], []).append(item)
        if by_kind.get("LeaderWorkerSet"):
            raise ClusterError(
                f"{model}: a replica over several nodes is not supported by the embedded cluster"
            )
        slots = [_slot(d, state) for d in by_kind.get("Deployment", [])]
        if len({s.slot for s in slots}) != len(slots):
            raise ClusterError(f"{model}: two Deployments in one slot")
        services = {
            s["metadata"]["name"]: Slot(s["spec"]["selector"][SLOT_LABEL])
            for s in by_kind.get("Service", [])
        }
        routes = by_kind.get("HTTPRoute", [])
        if len(routes) != 1:
            raise ClusterError(f"{model}: {len(routes)} HTTPRoutes instead of one")
        route = _route(routes[0], services)
    except LockgateError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ClusterError(f"the manifests of {model} cannot be read: {error!r}") from error
    return DesiredModel(model, tuple(sorted(slots, key=lambda s: s.slot)), route)


def _slot(deployment: Mapping[str, Any], state: ReleaseState | None) -> DesiredSlot:
    spec = deployment["spec"]
    template = spec["template"]
    slot = Slot(template["metadata"]["labels"][SLOT_LABEL])
    annotations = template["metadata"].get("annotations") or {}
    strategy = spec.get("strategy", {})
    rolling = strategy.get("rollingUpdate", {})
    recreate = strategy.get("type") == "Recreate"
    replicas = int(spec.get("replicas", 1))
    parsed, refusal = None, None
    try:
        occupant = state.occupant(slot) if state is not None else None
        if state is None or occupant is None:
            raise ClusterError(f"the release state names no candidate in slot {slot}")
        check_identity(deployment, occupant, state.replicas(slot))
        if "replicas" not in spec:
            raise ClusterError("the embedded cluster has no autoscaler: set no serving.scaling")
        parsed = PodTemplate.parse(template)
    except LockgateError as error:
        refusal = error.message
    return DesiredSlot(
        slot=slot,
        name=deployment["metadata"]["name"],
        replicas=replicas,
        max_surge=0 if recreate else _share(rolling.get("maxSurge", "25%"), replicas, up=True),
        max_unavailable=replicas
        if recreate
        else _share(rolling.get("maxUnavailable", "25%"), replicas, up=False),
        template=parsed,
        raw_template=template,
        candidate=annotations.get(CANDIDATE_ANNOTATION),
        refusal=refusal,
    )


def _route(route: Mapping[str, Any], services: Mapping[str, Slot]) -> DesiredRoute:
    rules = []
    for rule in route["spec"].get("rules", []):
        for match in rule.get("matches") or [{}]:
            path = match.get("path", {"type": "PathPrefix", "value": "/"})
            if path.get("type", "PathPrefix") != "PathPrefix":
                raise ClusterError(f"path match {path.get('type')} is not supported")
            unknown = set(match) - {"path", "headers"}
            if unknown:
                raise ClusterError(f"matches by {sorted(unknown)} are not supported")
            rules.append(
                RouteRule(
                    headers=tuple(_header(h) for h in match.get("headers", [])),
                    prefix=path.get("value", "/"),
                    weights=tuple(
                        (services[b["name"]], int(b.get("weight", 1)))
                        for b in rule.get("backendRefs", [])
                    ),
                    timeout_seconds=_seconds((rule.get("timeouts") or {}).get("request", "0s")),
                    mirrors=tuple(_mirror(f, services) for f in rule.get("filters", [])),
                )
            )
    annotation = (route["metadata"].get("annotations") or {}).get(FAILOVER_ANNOTATION, "")
    return DesiredRoute(
        # A rule with more conditions goes before one with fewer, whatever their order (Gateway API, HTTPRouteRule).
        rules=tuple(sorted(rules, key=lambda r: (-len(r.prefix), -len(r.headers)))),
        failover=tuple(Slot(s) for s in annotation.split(",") if s),
    )


def _header(match: Mapping[str, Any]) -> tuple[str, str]:
    if match.get("type", "Exact") != "Exact":
        raise ClusterError(f"header match {match['type']} is not supported")
    return match["name"].lower(), match["value"]


def _mirror(item: Mapping[str, Any], services: Mapping[str, Slot]) -> tuple[Slot, float]:
    if item.get("type") != "RequestMirror":
        raise ClusterError(f"route filter {item.get('type')} is not supported")
    mirror = item["requestMirror"]
    return services[mirror["backendRef"]["name"]], float(mirror.get("percent", 100))


def _refuse(data: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if data.get(name):
            raise ClusterError(f"{name} is not supported by the embedded cluster")


def _variable(item: Mapping[str, Any]) -> tuple[str, str]:
    if "valueFrom" in item:
        raise ClusterError(
            f"environment variable {item['name']} comes from elsewhere: not supported"
        )
    return item["name"], str(item.get("value", ""))


def _mount(mount: Mapping[str, Any], volume: Mapping[str, Any]) -> Mount:
    if "image" in volume:
        if volume["name"] != MODEL_VOLUME:
            raise ClusterError(f"image volume {volume['name']} is not the model")
        return Mount(mount["mountPath"], volume["name"], is_model=True)
    if "emptyDir" not in volume:
        raise ClusterError(f"volume {volume['name']} is neither an image nor an emptyDir")
    return Mount(mount["mountPath"], volume["name"], is_model=False)


def _pre_stop(lifecycle: Mapping[str, Any]) -> float:
    hook = lifecycle.get("preStop")
    if hook is None:
        return 0.0
    if "sleep" not in hook:
        raise ClusterError("only a sleep is supported as preStop hook")
    return float(hook["sleep"]["seconds"])


def _cores(text: str) -> int:
    """Whole cores for a CPU quantity, at least one."""
    match = _CPU.fullmatch(text)
    if match is None:
        raise ClusterError(f"not a CPU quantity: {text!r}")
    number = int(match[1])
    return max(1, -(-number // 1000) if match[2] else number)


def _share(value: int | str, replicas: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    percent = int(value.removesuffix("%")) * replicas
    return -(-percent // 100) if up else percent // 100


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ClusterError(f"not a duration: {text!r}")
    hours, minutes, seconds, milliseconds = (int(g or 0) for g in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
