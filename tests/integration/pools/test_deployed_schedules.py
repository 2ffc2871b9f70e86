"""The schedules of `prefect.yaml`, as `prefect deploy --all` brings them to a server: its scheduler makes their runs, of no other."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.integration.pools.conftest import PrefectServer
from tests.integration.tracking.test_triggers import wait_until

SUNDAY = 6


def scheduled(server: PrefectServer) -> dict[str, list[datetime]]:
    """When the runs that nobody asked for are to begin, by deployment."""
    found: dict[str, list[datetime]] = {}
    for deployment in server.ask("POST", "deployments/filter", {}):
        asked = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        for run in server.ask("POST", "flow_runs/filter", asked):
            if run["auto_scheduled"]:
                at = datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC)
                found.setdefault(deployment["name"], []).append(at)
    return found


def test_the_nightly_look_and_the_weekly_rescan_become_runs(server: PrefectServer) -> None:
    wanted = {"track", "rescan", "reconcile"}
    wait_until(lambda: scheduled(server).keys() >= wanted, 120, "runs of every schedule")
    found = scheduled(server)
    # What is switched off in prefect.yaml has none.
    assert found.keys() == wanted
    assert {(at.hour, at.minute) for at in found["track"]} == {(3, 0)}
    assert {(at.weekday(), at.hour, at.minute) for at in found["rescan"]} == {(SUNDAY, 4, 0)}
