"""Who drives a release: a lease on a Prefect concurrency limit of one.

A driver that dies stops renewing; the server takes the lease back after `LEASE_SECONDS` (the least that Prefect grants)
and the next reconcile goes on. Losing the lease ends the driver: two must never drive one release.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from lockgate.errors import LockgateError

LEASE_SECONDS = 60.0
WAIT_SECONDS = 2.0
AGAIN_SECONDS = 10.0
ALONE_SECONDS = 12 * 3600.0


class LeaseHeld(LockgateError):
    """Another flow is driving this release."""


@contextmanager
def release_lease(model: str, environment: str) -> Iterator[None]:
    """Hold the lease of one release while the block runs.

    Raises:
        LeaseHeld: another flow holds it.
    """
    with _held(_name(model, environment), WAIT_SECONDS, strict=True) as held:
        if not held:
            raise LeaseHeld(
                f"another flow is driving {model} in {environment}",
                hint=f"wait for it; if it died, its lease ends within {LEASE_SECONDS:.0f} s",
            )
        yield


def is_driven(model: str, environment: str) -> bool:
    """Whether somebody holds the lease of the release; a dead one's counts until the server has taken it back."""
    with get_client(sync_client=True) as client:
        try:
            return (
                client.read_global_concurrency_limit_by_name(_name(model, environment)).active_slots
                > 0
            )
        except ObjectNotFound:
            return False


def _name(model: str, environment: str) -> str:
    return f"lockgate-{model}-{environment}"


@contextmanager
def release_alone(
    model: str, environment: str, *,
    patience: float = ALONE_SECONDS, hint: str = "the next look tries again",
) -> Iterator[None]:  # fmt: skip
    """Wait until no other release of the model runs there, and let none run while the block does.

    That two never meet in Git is Git's to see to; this spares the second one the work before. So a lease that is lost
    meanwhile, because Prefect is away, ends nothing.

    Raises:
        LeaseHeld: the other one runs for longer than `patience` seconds.
    """
    name = f"lockgate-release-{model}-{environment}"
    with _held(name, patience, strict=False) as held:
        if not held:
            raise LeaseHeld(f"another release of {model} to {environment} runs", hint=hint)
        yield


@contextmanager
def _held(name: str, patience: float, *, strict: bool) -> Iterator[bool]:
    """Whether the lease of that name could be had; held while the block runs. Errors of the block pass as they are."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    held = _acquired(name, patience, strict=strict)
    if held is None:
        yield False
        return
    try:
        yield True
    except BaseException as failure:
        if not held.__exit__(type(failure), failure, failure.__traceback__):
            raise
    else:
        held.__exit__(None, None, None)


def _acquired(name: str, patience: float, *, strict: bool) -> AbstractContextManager[None] | None:
    """The lease, entered; None where another had it for all of `patience` seconds.

    Only the server's own "locked" says that another has it. With Prefect's `timeout_seconds`, which runs while the server
    thinks, a server that is slow to answer would say so too.
    """
    until = time.monotonic() + patience
    while True:
        held = concurrency(
            name, occupy=1, max_retries=0, lease_duration=LEASE_SECONDS, strict=strict,
        )  # fmt: skip
        try:
            held.__enter__()
            return held
        except ConcurrencySlotAcquisitionError as error:
            if not _locked(error):
                raise
        if time.monotonic() >= until:
            return None
        time.sleep(min(AGAIN_SECONDS, patience / 4))


def _locked(error: ConcurrencySlotAcquisitionError) -> bool:
    cause = error.__cause__
    return (
        isinstance(cause, httpx.HTTPStatusError)
        and cause.response.status_code == httpx.codes.LOCKED
    )
