"""What steps took, remembered in the store by step and hardware, so that a plan can say what they will take."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.digests import Digest
from lockgate.domain.durations import Predicted, predict
from lockgate.domain.steps import StepKey
from lockgate.errors import LockgateError
from serving.hardware import hardware_digest

logger = logging.getLogger("lockgate.steps")

KEPT = 20
"""The newest runs count; older ones were made by older code."""


def here() -> Digest:
    """The hardware of steps that run in this process."""
    return hardware_digest(os.cpu_count() or 1)


def remember(
    records: StepRecords,
    step: str,
    seconds: float,
    *,
    work: Any = None,
    hardware: Digest | None = None,
) -> None:
    """Add one run. `work` (JSON-compatible) is what the duration depends on beside the hardware, if that is known beforehand.

    Two writers at once may lose a run, which matters little. A store that refuses does not fail the step that was done.
    """
    hardware = hardware or here()
    if not math.isfinite(seconds) or seconds < 0:
        return
    try:
        for key in {_key(step, hardware, work), _key(step, hardware, None)}:
            runs = _runs(records, key)
            records.record(key, {"seconds": [*runs, round(seconds, 3)][-KEPT:]})
    except LockgateError as error:
        logger.warning("the duration of %s could not be recorded: %s", step, error.message)


def predicted(
    records: StepRecords,
    step: str,
    *,
    default: float,
    reason: str,
    work: Any = None,
    hardware: Digest | None = None,
) -> Predicted:
    """Seconds that the step will take; `default` for `reason` where it never ran on this hardware."""
    hardware = hardware or here()
    every = _runs(records, _key(step, hardware, None))
    same = every if work is None else _runs(records, _key(step, hardware, work))
    return predict(same, every, default, reason)


def _key(step: str, hardware: Digest, work: Any) -> Digest:
    inputs = {"of": step, "hardware": hardware, "work": work}
    return StepKey(step="duration", version=1, inputs=inputs).content_digest()


def _runs(records: StepRecords, key: Digest) -> list[float]:
    found = records.find(key)
    if found is None:
        return []
    runs = found.get("seconds", [])
    return [float(s) for s in runs if isinstance(s, int | float)]
