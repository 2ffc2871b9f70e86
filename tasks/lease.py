"""Who drives a release: a lease on a Prefect concurrency limit of one.

A driver that dies stops renewing; the server takes the lease back after `LEASE_SECONDS` (the least that Prefect grants)
and the next reconcile goes on. Losing the lease ends the driver: two must never drive one release.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from lockgate.errors import LockgateError

LEASE_SECONDS = 60.0
WAIT_SECONDS = 1.0


class LeaseHeld(LockgateError):
    """Another flow is driving this release."""


@contextmanager
def release_lease(model: str, environment: str) -> Iterator[None]:
    """Hold the lease of one release while the block runs.

    Raises:
        LeaseHeld: another flow holds it.
    """
    name = f"lockgate-{model}-{environment}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    held = concurrency(
        name, occupy=1, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
    )  # fmt: skip
    try:
        held.__enter__()
    except TimeoutError as error:
        raise LeaseHeld(
            f"another flow is driving {model} in {environment}",
            hint=f"wait for it; if it died, its lease ends within {LEASE_SECONDS:.0f} s",
        ) from error
    try:
        yield
    except BaseException as failure:
        if not held.__exit__(type(failure), failure, failure.__traceback__):
            raise
    else:
        held.__exit__(None, None, None)
