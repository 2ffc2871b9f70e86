"""A canary's scrapes as a Prometheus has stored them, where the settings name one: read instead of the endpoints.

What is missing there is missing for the judge: a server that Prometheus does not answer for, or has no new samples of, is
unobserved, and never well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lockgate.adapters.metrics import ScrapeTarget
from lockgate.adapters.prometheus import PrometheusReader, PrometheusTarget
from lockgate.domain.cluster import RouteStatus
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.domain.trace import Scrape, Track
from lockgate.errors import LockgateError, UsageError
from lockgate.settings import Settings
from serving.local.envoy_config import cluster_name
from serving.local.status import ClusterStatus
from serving.manifests.names import namespace, slot_name

logger = logging.getLogger("lockgate.release")

LATE_SECONDS = 30.0
"""A scrape bears the time of its beginning and is stored when it has ended: so far back is asked again for what came late."""
OLDEST_SECONDS = 3600.0
"""Further back than this a driver that comes late does not read: counters are cumulative, so a hole loses no request."""

Newest = Mapping[tuple[Track, str], float]


class StoredMetrics:
    """The scrapes of one model's slots in a Prometheus."""

    def __init__(
        self, settings: Settings, model: str, environment: str, tracks: Mapping[str, Track],
        *, route: RouteStatus | None = None,
    ) -> None:  # fmt: skip
        """`tracks`: by slot; `route`: as it is, for a slot that gets copies.

        Raises:
            UsageError: the settings name no Prometheus, their templates or token cannot be used, or do not tell the slots apart.
        """
        if settings.prometheus_url is None:
            raise UsageError("no Prometheus is set", hint="set LOCKGATE_PROMETHEUS_URL")
        try:
            targets = [
                target
                for slot, track in tracks.items()
                for target in _targets(settings, model, environment, slot, track, route)
            ]
            url = settings.prometheus_url.format(environment=environment, model=model)
        except (LookupError, ValueError) as error:
            raise UsageError(
                f"a template of LOCKGATE_PROMETHEUS_… cannot be filled: {error!r}",
                hint="known are {environment}, {model}, and in labels {namespace} and {slot}",
            ) from error
        of: dict[Track, set[tuple[Any, ...]]] = {track: set() for track in tracks.values()}
        for target in targets:
            of[target.track].add((tuple(sorted(target.labels.items())), target.cluster))
        if len(of) > 1 and set.intersection(*of.values()):
            raise UsageError(
                "both slots would be read from the same series of Prometheus: the canary would be compared with itself",
                hint="name {slot} in LOCKGATE_PROMETHEUS_SERVERS, and {slot} or {service} in LOCKGATE_GATEWAY_CLUSTER",
            )
        self._reader = PrometheusReader(
            url, targets, ca=settings.prometheus_ca, token=_token(settings)
        )

    def read(self, start: float, end: float) -> list[Scrape]:
        """All that was scraped after `start` and until `end`. Raises `MetricsError`."""
        return self._reader.read(start, end)

    def new(self, newest: Newest, since: float, now: float) -> list[Scrape]:
        """What is stored beyond the newest scrape of each instance (of those that answered), and not older than `since`. Raises
        `MetricsError`."""
        start = max(newest.values(), default=since) - LATE_SECONDS
        start = max(start, since, now - OLDEST_SECONDS)
        return [
            found
            for found in self.read(start, now)
            if found.time > newest.get((found.track, found.instance), since)
        ]


def stored_scrapes(
    settings: Settings, state: ReleaseState, targets: Sequence[ScrapeTarget], tracks: Mapping[str, Track],
    status: ClusterStatus, *, newest: Newest, since: float, now: float,
) -> list[Scrape]:  # fmt: skip
    """What Prometheus has stored since the last look, and which servers the cluster knows to be gone: of these Prometheus
    says nothing. Where it cannot be asked, these alone."""
    gone = [
        Scrape(now, tracks[target.slot], target.instance, up=False)
        for target in targets
        if target.url is None and target.cluster is None and target.slot in tracks
    ]
    model = status.models.get(state.model)
    try:
        stored = StoredMetrics(
            settings, state.model, state.environment, tracks,
            route=model.route if model is not None else None,
        )  # fmt: skip
        found = stored.new(newest, since, now)
    except LockgateError as error:
        logger.warning("no metrics: %s", error.message)
        return gone
    return [*found, *gone]


def _targets(
    settings: Settings, model: str, environment: str, slot: str, track: Track,
    route: RouteStatus | None,
) -> list[PrometheusTarget]:  # fmt: skip
    names: dict[str, Any] = {
        "model": model, "environment": environment, "slot": slot,
        "namespace": namespace(environment),
    }  # fmt: skip
    clusters = [cluster_name(model, Slot(slot))]
    if settings.cluster == "kubernetes":
        service = slot_name(model, Slot(slot))
        clusters = [settings.gateway_cluster.format(**names, service=service)]
        if settings.gateway_mirror_cluster and route is not None and route.mirrored == slot:
            copies = settings.gateway_mirror_cluster
            clusters.append(copies.format(**names, service=service, rule=route.mirror_rule))
    servers, gateway = (
        {key: value.format(**names) for key, value in labels.items()}
        for labels in (settings.prometheus_servers, settings.prometheus_gateway)
    )
    named_by = settings.prometheus_instance
    return [
        PrometheusTarget(track, servers, named_by=named_by),
        *(PrometheusTarget(track, gateway, cluster, named_by) for cluster in clusters),
    ]


def _token(settings: Settings) -> str | None:
    if settings.prometheus_token is not None:
        return settings.prometheus_token.get_secret_value()
    path: Path | None = settings.prometheus_token_file
    if path is None:
        return None
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the token file {path} cannot be read: {error}",
            hint="check LOCKGATE_PROMETHEUS_TOKEN_FILE",
        ) from error
