"""Steps that want a GPU share the slots of one queue, whichever step it is: asked of a real server, as a worker asks it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.pools.conftest import PrefectServer


def handed_out(server: PrefectServer) -> list[str]:
    """Runs that the server would give a worker of the queue now."""
    body = {"work_queue_names": ["gpu"]}
    found = server.ask("POST", "work_pools/lockgate/get_scheduled_flow_runs", body)
    return [one["flow_run"]["id"] for one in found]


def test_two_steps_of_different_deployments_share_the_slots(
    server: PrefectServer, tmp_path: Path
) -> None:
    limit = ("work-queue", "set-concurrency-limit", "gpu", "2", "--pool", "lockgate")
    server.prefect(*limit, cwd=tmp_path)
    runs = {server.start("quantize"), server.start("measure"), server.start("quantize")}
    first = handed_out(server)
    assert len(first) == 2
    for run in first:
        server.force(run, "PENDING")
    (last,) = runs - set(first)
    assert handed_out(server) == []
    server.force(first[0], "RUNNING")
    assert handed_out(server) == []
    server.force(first[1], "COMPLETED")
    assert handed_out(server) == [last]
    for run in runs:
        server.force(run, "COMPLETED")
