"""Finished steps are found again, in any process and on any machine, by what went into them.

The record lies in the image store or registry (not in Prefect's local result files, which another machine does not have), as
a tagged JSON artifact whose tag is the digest of `StepKey`. A step that failed records nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from prefect.runtime import deployment
from pydantic import ValidationError

from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.steps import StageSeconds, StepKey
from lockgate.errors import RegistryError
from tasks import durations
from tasks.workspace import Workspace

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


HANDOVER_VERSION = 1


def handed_over(step: str, request: Frozen, result: T) -> T:
    """`result`, left in the store for the caller where the step runs as a deployment: on another machine Prefect's result
    files are out of the caller's reach."""
    if deployment.id is not None:
        Workspace.current().records.record(
            _handover_key(step, request).content_digest(), {"result": result.to_data()}
        )
    return result


def received(step: str, request: Frozen, result_type: type[T]) -> T:
    """What the step's deployment, which has just completed, left for this request.

    Raises:
        RegistryError: there is nothing, or it is not readable.
    """
    found = recorded(Workspace.current().records, _handover_key(step, request), result_type)
    if found is None:
        raise RegistryError(
            f"step {step} completed, but its result is not in the store",
            hint="caller and worker must share one store: compare LOCKGATE_STORE and LOCKGATE_REPOSITORY",
        )
    return found


def _handover_key(step: str, request: Frozen) -> StepKey:
    return StepKey(
        step=f"{step}-result", version=HANDOVER_VERSION,
        inputs={"request": str(request.content_digest())},
    )  # fmt: skip
