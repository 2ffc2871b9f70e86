"""How long a step will take, from how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from lockgate.domain.base import Frozen


class Predicted(Frozen):
    """Seconds, and what they are taken from."""

    seconds: float
    basis: str


def predict(
    same: Sequence[float], similar: Sequence[float], default: float, reason: str
) -> Predicted:
    """Seconds of a step from earlier runs of it on the same hardware.

    `same`: of the very work; `similar`: of the step with other work, taken where there are none of the same. The median of
    the runs: one that was disturbed counts little. `default` for `reason` where there is no run at all.
    """
    for runs, what in ((same, ""), (similar, " with other work")):
        if runs:
            count = f"{len(runs)} earlier run{'s' if len(runs) > 1 else ''}"
            return Predicted(seconds=float(median(runs)), basis=f"median of {count}{what}")
    return Predicted(seconds=default, basis=f"no earlier run: {reason}")
