"""Stretches in which the baseline had no server to send a request to.

The gateway lets the canary answer for a baseline that is gone. What the canary does meanwhile, with all of the traffic on it, is
compared with nobody: its share of the requests is the gateway's doing, its latencies are those of twice the load. That the
baseline died is no word on the canary. (A canary that is gone is another matter: what it does not take counts against it.)
"""

from __future__ import annotations

from lockgate.domain.judge.increments import Increments
from lockgate.domain.trace import Scrape

HEALTHY_MEMBERS = "envoy_cluster_membership_healthy"
"""Servers of the track that the gateway holds to be healthy."""


_RECENT = 20.0
"""Seconds for which a gateway's word counts."""


class Absences:
    """By the gateway's own word, scrape by scrape."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, bool]] = {}
        self._told: dict[str, tuple[float, bool]] = {}
        self._stretches: list[tuple[float, float]] = []

    def notice(self, scrape: Scrape) -> None:
        """Take one scrape. The stretch before it counts where the baseline was absent at either of its ends."""
        healthy = scrape.gauges.get(HEALTHY_MEMBERS)
        if scrape.track != "baseline" or healthy is None:
            return
        # Several gateways: it is absent once none of them has a server for it.
        absent = healthy <= 0 and all(
            none
            for other, (at, none) in self._told.items()
            if other != scrape.instance and scrape.time - at <= _RECENT
        )
        self._told[scrape.instance] = (scrape.time, healthy <= 0)
        before, was_absent = self._last.get(scrape.instance, (scrape.time, False))
        if absent or was_absent:
            if self._stretches and self._stretches[-1][1] >= before:
                self._stretches[-1] = (self._stretches[-1][0], scrape.time)
            else:
                self._stretches.append((before, scrape.time))
        self._last[scrape.instance] = (scrape.time, absent)

    def covers(self, increments: Increments) -> bool:
        """Whether any of what these increments tell happened while the baseline was absent."""
        return any(
            increments.since < until and increments.until > since
            for since, until in reversed(self._stretches)
        )
