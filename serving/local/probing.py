"""Kubernetes' HTTP probes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx

from serving.local.desired import Probe


class ProbeFailed(Exception):
    """A startup or liveness probe failed for good: the server is to be killed. Does not leave `serving.local`."""


async def _succeeds(client: httpx.AsyncClient, base: str, probe: Probe) -> bool:
    try:
        async with asyncio.timeout(probe.timeout):
            response = await client.get(
                base + probe.path, headers={"connection": "close"}, timeout=None
            )
    except (httpx.HTTPError, TimeoutError):
        return False
    return 200 <= response.status_code < 400


async def until_started(client: httpx.AsyncClient, base: str, probe: Probe | None) -> None:
    """Returns when the server has started. `ProbeFailed` if it does not within the probe's patience."""
    if probe is None:
        return
    await asyncio.sleep(probe.initial_delay)
    for _ in range(probe.failures):
        if await _succeeds(client, base, probe):
            return
        await asyncio.sleep(probe.period)
    raise ProbeFailed(f"it did not start within {probe.failures} probes of {probe.period} s")


async def check(
    client: httpx.AsyncClient, base: str, probe: Probe | None, report: Callable[[bool], None]
) -> None:
    """Probes for ever, and reports each time that enough probes in a row agreed. Without a probe: healthy at once."""
    if probe is None:
        report(True)
        return
    await asyncio.sleep(probe.initial_delay)
    good = bad = 0
    while True:
        if await _succeeds(client, base, probe):
            good, bad = good + 1, 0
            if good >= probe.successes:
                report(True)
        else:
            good, bad = 0, bad + 1
            if bad >= probe.failures:
                report(False)
        await asyncio.sleep(probe.period)
