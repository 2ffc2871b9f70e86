"""Finished steps are found again, in any process and on any machine, by what went into them.

The record lies in the image store or registry (not in Prefect's local result files, which another machine does not have), as
a tagged JSON artifact whose tag is the digest of `StepKey`. A step that failed records nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.base import Frozen
from lockgate.domain.steps import StageSeconds, StepKey

logger = logging.getLogger("lockgate.steps")

T = TypeVar("T", bound=Frozen)


def find_or_make(
    records: StepRecords,
    key: StepKey,
    result_type: type[T],
    make: Callable[[], T],
    *,
    usable: Callable[[T], bool] = lambda result: True,
) -> tuple[T, StageSeconds]:
    """The recorded result of `key`, or that of `make()`, which is then recorded.

    A record that cannot be read as `result_type`, or whose outputs are gone (`usable` says no), is made anew.
    """
    started = time.monotonic()
    digest = key.content_digest()
    found = records.find(digest)
    if found is not None:
        try:
            result = result_type.model_validate(found["result"])
        except (ValidationError, KeyError) as error:
            logger.warning("%s: the recorded result is unreadable, made anew: %s", key.step, error)
        else:
            if usable(result):
                logger.info("%s: found from an earlier run (%s)", key.step, digest.short)
                seconds = time.monotonic() - started
                return result, StageSeconds(stage=key.step, seconds=seconds, reused=True)
    result = make()
    records.record(digest, {"key": key.to_data(), "result": result.to_data()})
    seconds = time.monotonic() - started
    logger.info("%s: done in %.1f s", key.step, seconds)
    return result, StageSeconds(stage=key.step, seconds=seconds)
