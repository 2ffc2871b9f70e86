"""When blocks end: short ones first, so that what is glaring is seen at once; then longer ones, since
requests near in time tell the same story twice."""

from __future__ import annotations

import bisect

_SHORTEST = 0.2
"""The first blocks' length as part of the longest."""
_GROWTH = 0.1
"""Length of a block as part of the time since the beginning, until it is the longest."""


class BlockEnds:
    """Ends of the blocks of a step, in seconds after its beginning."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        ends = [0.0]
        while True:
            length = max(_GROWTH * ends[-1], _SHORTEST * longest)
            if length >= longest:
                break
            ends.append(ends[-1] + length)
        self._early = ends

    def end(self, number: int) -> float:
        """When the block with this number (from 1) ends."""
        last = len(self._early) - 1
        if number <= last:
            return self._early[number]
        return self._early[last] + (number - last) * self._longest

    def ended(self, seconds: float) -> int:
        """How many blocks have ended by then."""
        last = self._early[-1]
        if seconds < last:
            return bisect.bisect_right(self._early, seconds) - 1
        return len(self._early) - 1 + int((seconds - last) / self._longest)
