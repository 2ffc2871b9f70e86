"""Finished steps are found again, in any process and on any machine, by what went into them.

The record lies in the image store or registry (not in Prefect's local result files, which another machine does not have), as
a tagged JSON artifact whose tag is the digest of `StepKey`. A step that failed records nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.steps import StageSeconds, StepKey
from tasks import durations

logger = logging.getLogger("lockgate.steps")

T = TypeVar("T", bound=Frozen)


def find_or_make(
    records: StepRecords,
    key: StepKey,
    result_type: type[T],
    make: Callable[[], T],
    *,
    usable: Callable[[T], bool] = lambda result: True,
    work: Any = None,
    hardware: Digest | None = None,
) -> tuple[T, StageSeconds]:
    """The recorded result of `key`, or that of `make()`, which is then recorded, as is how long it took.

    `work` and `hardware`: what the duration depends on (see `tasks.durations`), by default the step's name and this machine.
    A record that cannot be read as `result_type`, or whose outputs are gone (`usable` says no), is made anew.
    """
    started = time.monotonic()
    result = recorded(records, key, result_type)
    if result is not None and usable(result):
        logger.info("%s: found from an earlier run (%s)", key.step, key.content_digest().short)
        return result, StageSeconds(stage=key.step, seconds=time.monotonic() - started, reused=True)
    result = make()
    records.record(key.content_digest(), {"key": key.to_data(), "result": result.to_data()})
    seconds = time.monotonic() - started
    durations.remember(records, key.step, seconds, work=work, hardware=hardware)
    logger.info("%s: done in %.1f s", key.step, seconds)
    return result, StageSeconds(stage=key.step, seconds=seconds)


def recorded(records: StepRecords, key: StepKey, result_type: type[T]) -> T | None:
    """The recorded result of a step; None if there is none that can be read as `result_type`."""
    found = records.find(key.content_digest())
    if found is None:
        return None
    try:
        return result_type.model_validate(found["result"])
    except (ValidationError, KeyError) as error:
        logger.warning("%s: the recorded result is unreadable: %s", key.step, error)
        return None
