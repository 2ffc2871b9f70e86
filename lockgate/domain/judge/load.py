"""Whether a latency is compared like with like: what a replica of each track carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lockgate.domain.judge.config import JudgeConfig
from lockgate.domain.trace import TRACKS, Track

_MUCH = 2.0
"""Where the weight is not declared, a canary may carry this much more before its slowness is held to be the load's."""


@dataclass(frozen=True)
class Load:
    """Requests a replica on the canary over requests a replica on the baseline."""

    ratio: float = 1.0
    surely_lighter: bool = False
    """The canary carries less than the allowed range, beyond chance."""
    surely_heavier: bool = False
    maybe_heavier: bool = False
    """No committed weight says that the canary carries no more, and the requests so far do not rule out that it carries much
    more."""

    @property
    def excuses(self) -> bool:
        """Whether slowness of the canary may be the load's."""
        return self.surely_heavier or self.maybe_heavier


def load_of(
    config: JudgeConfig,
    arrivals: Mapping[Track, float],
    finished: Mapping[Track, float],
    served: Mapping[Track, float],
) -> Load:
    """By arrivals at the gateway where they are known, else by finished requests. Alike where neither is known: then no
    load can be held against anybody, ever."""
    counts = arrivals if min(arrivals.values()) > 0 else finished
    if min(counts.values()) <= 0 or min(served.values()) <= 0:
        return Load()
    rate = {t: counts[t] / served[t] for t in TRACKS}
    ratio = rate["canary"] / rate["baseline"]
    noise = 2.0 * math.sqrt(sum(1.0 / counts[t] for t in TRACKS))
    limit = math.log(config.max_load_ratio)
    return Load(
        ratio,
        surely_lighter=math.log(ratio) + noise < -limit,
        surely_heavier=math.log(ratio) - noise > limit,
        maybe_heavier=not _no_more_by_weight(config, served)
        and math.log(ratio) + noise > max(math.log(_MUCH), limit),
    )


def _no_more_by_weight(config: JudgeConfig, served: Mapping[Track, float]) -> bool:
    """Whether the committed weight gives a replica of the canary no more to do than one of the baseline. (That the gateway
    keeps to it is `split`'s.)"""
    weight = config.canary_weight
    if weight is None:
        return False
    meant = weight / (1.0 - weight) * served["baseline"] / served["canary"]
    return meant <= config.max_load_ratio
