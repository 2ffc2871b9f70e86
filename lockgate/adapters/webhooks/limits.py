"""How much one sender may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEYS = 4096
"""Addresses that are remembered; the one unseen for longest is forgotten first."""


@dataclass(frozen=True)
class Limits:
    """Of the reception. Rates in deliveries a second."""

    body_bytes: int = 1 << 20
    """Larger bodies are refused, by their announced length before anything is read."""
    body_seconds: float = 10.0
    """For a whole body to arrive."""
    address_rate: float = 300.0
    """From one address, whoever it says it is."""
    address_burst: int = 600
    sender_rate: float = 50.0
    """Of one kind of sender that proved who it is."""
    sender_burst: int = 200


class Buckets:
    """A token bucket for each key. For use from one thread."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> bool:
        """Whether `key` may ask once more now."""
        now = self._clock()
        left, at = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._left[key] = (left - 1 if allowed else left, now)
        if len(self._left) > MAX_KEYS:
            self._left.popitem(last=False)
        return allowed
