"""The embedded cluster does what Git says, and no request notices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from cluster_world import MODEL, Traffic, World

from lockgate.adapters.metrics import AccessLogReader, scrape
from lockgate.domain.release_state import Phase, Slot
from lockgate.errors import ClusterError
from serving.local.cluster import LocalCluster
from serving.processes import ProcessId, environment_of, marked


def pids(world: World) -> dict[str, int | None]:
    status = world.cluster.status()
    slots = status.models[MODEL].slots
    return {name: pod.pid for name, slot in slots.items() for pod in slot.pods}


def test_a_first_release_takes_traffic_only_when_it_has_weight(world: World) -> None:
    world.apply(phase=Phase.DEPLOYING, a=world.occupant("one"))
    world.until_ready("a")
    assert world.ask().status_code == 503
    assert world.ask(slot="a").json()["server"] == "one"
    world.apply(phase=Phase.STABLE, stable=Slot.A)
    assert world.ask().json()["server"] == "one"
    assert world.ask().headers["x-lockgate-slot"] == "a"


def test_no_request_fails_from_first_canary_step_through_promotion_to_an_emptied_slot(
    world: World,
) -> None:
    world.release_first("one")
    stable = pids(world)
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        candidate = world.occupant("two")
        world.apply(phase=Phase.DEPLOYING, b=candidate)
        world.until_ready("b", candidate.candidate)
        assert {slot for _, slot in traffic.slots} == {"a"}
        for step, weight in enumerate((5, 50)):
            world.apply(phase=Phase.CANARY, step=step, weight=weight)
            time.sleep(1)
        assert pids(world).items() >= stable.items(), "a change of weights restarted a server"
        world.apply(phase=Phase.BAKING, step=None, weight=0, stable=Slot.B)
        promoted = time.monotonic()
        time.sleep(1)
        world.apply(phase=Phase.STABLE, a=None)
        world.until(lambda s: "a" not in s.models[MODEL].slots)
        time.sleep(1)
    assert traffic.failures == []
    assert len(traffic.slots) > 100
    assert {slot for began, slot in traffic.slots if began > promoted} == {"b"}
    shares = [slot for _, slot in traffic.slots]
    assert "b" in shares[: len(shares) // 2] or shares.count("b") > 20


def test_a_rollback_reaches_the_gateway_and_no_further_request_reaches_the_canary(
    world: World,
) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    world.apply(phase=Phase.CANARY, step=1, weight=50)
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        time.sleep(1)
        world.apply(phase=Phase.DRAINING, step=None, weight=0)
        rolled_back = time.monotonic()
        time.sleep(1)
        world.apply(phase=Phase.STABLE, b=None)
        world.until(lambda s: "b" not in s.models[MODEL].slots)
    assert traffic.failures == []
    assert "b" in {slot for _, slot in traffic.slots}
    assert {slot for began, slot in traffic.slots if began > rolled_back} == {"a"}


def answers(world: World) -> bool:
    try:
        return world.cluster.status().gateway.pid is not None
    except ClusterError:
        return False


def test_a_killed_agent_leaves_everything_running_and_the_next_one_adopts_it(world: World) -> None:
    world.release_first("one")
    before = world.cluster.status()
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        os.kill(before.pid, signal.SIGKILL)
        # Nobody calls `up`: it is started again by what supervises it.
        deadline = time.monotonic() + 20
        while not (world.cluster.running() and answers(world)) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        after = world.cluster.status()
    assert traffic.failures == []
    assert after.pid != before.pid
    assert after.gateway == before.gateway
    assert after.models[MODEL].gateway_url == before.models[MODEL].gateway_url
    assert [p.pid for p in after.models[MODEL].slots["a"].pods] == [
        p.pid for p in before.models[MODEL].slots["a"].pods
    ]
    assert after.models[MODEL].slots["a"].restarts == 0
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")


def test_an_agent_without_its_remote_serves_on_and_says_so(world: World) -> None:
    world.release_first("one")
    remote = world.root / "remote.git"
    remote.rename(world.root / "away.git")
    os.kill(world.cluster.status().pid, signal.SIGKILL)
    world.cluster.up()
    status = world.until(lambda s: s.sync_error is not None and s.synced is not None)
    assert status.models[MODEL].slots["a"].settled
    assert world.ask().json()["server"] == "one"
    (world.root / "away.git").rename(remote)
    world.until(lambda s: s.sync_error is None)


def test_a_crashed_server_is_restarted_and_the_other_slot_takes_its_traffic_meanwhile(
    world: World,
) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    world.apply(phase=Phase.CANARY, step=1, weight=50)
    canary = world.cluster.status().models[MODEL].slots["b"].pods[0]
    (world.control / "die-two").touch()
    assert canary.pid is not None
    os.kill(canary.pid, signal.SIGKILL)
    status = world.until(lambda s: s.models[MODEL].route.effective == {"a": 100})
    assert status.models[MODEL].route.weights == {"a": 50, "b": 50}
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        time.sleep(1)
        status = world.until(lambda s: bool(s.models[MODEL].slots["b"].refusals))
        assert "crash loop" in status.models[MODEL].slots["b"].refusals[0]
        (world.control / "die-two").unlink()
        status = world.until_ready("b")
    assert traffic.failures == []
    assert status.models[MODEL].slots["b"].restarts >= 3
    assert status.models[MODEL].slots["b"].refusals == ()
    world.until(lambda s: s.models[MODEL].route.effective == {"a": 50, "b": 50})


def test_a_candidate_without_a_verdict_never_takes_over_from_a_crashed_stable(world: World) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    (world.control / "unhealthy-one").touch()
    stable = world.cluster.status().models[MODEL].slots["a"].pods[0]
    assert stable.pid is not None
    os.kill(stable.pid, signal.SIGKILL)
    world.until(lambda s: s.models[MODEL].slots["a"].ready == 0)
    assert world.ask().status_code == 503
    assert world.ask(slot="b").json()["server"] == "two"


def test_a_crashed_gateway_is_back_on_the_same_port(world: World) -> None:
    world.release_first("one")
    url = world.cluster.gateway_url(MODEL)
    pid = world.cluster.status().gateway.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    status = world.until(lambda s: s.gateway.restarts == 1 and s.models[MODEL].route.loaded)
    assert status.models[MODEL].gateway_url == url
    assert world.ask().json()["server"] == "one"


def test_a_candidate_that_verification_refuses_never_starts_and_the_reason_is_told(
    world: World,
) -> None:
    world.release_first("one")
    two = world.occupant("two")
    refusal = world.snapshots / f"refuse-{two.candidate.digest.short}"
    refusal.write_text("the signature is by another key")
    world.apply(phase=Phase.DEPLOYING, b=two)
    status = world.until(lambda s: bool(s.models[MODEL].slots["b"].refusals))
    slot = status.models[MODEL].slots["b"]
    assert slot.refusals == ("the signature is by another key",)
    assert slot.pods[0].pid is None
    assert world.ask().json()["server"] == "one"


def test_a_store_that_is_away_is_waited_for_and_no_reason_to_refuse(world: World) -> None:
    world.snapshots.mkdir()
    (world.snapshots / "outage").touch()
    world.apply(phase=Phase.DEPLOYING, a=world.occupant("one"))
    status = world.until(lambda s: bool(s.models[MODEL].slots["a"].waiting))
    assert status.models[MODEL].slots["a"].refusals == ()
    (world.snapshots / "outage").unlink()
    world.until_ready("a")


def test_a_deployment_that_was_edited_by_hand_is_refused_and_what_runs_stays(world: World) -> None:
    world.release_first("one")
    before = pids(world)
    path = world.checkout / "models" / MODEL / "local" / "manifests" / f"deployment-{MODEL}-a.yaml"
    text = path.read_text()
    path.write_text(
        text.replace("TINY_NAME\n          value: one", "TINY_NAME\n          value: evil")
    )
    assert path.read_text() != text
    world.commit()
    status = world.until(lambda s: bool(s.models[MODEL].slots["a"].refusals))
    assert "TINY_NAME" in status.models[MODEL].slots["a"].refusals[0]
    assert pids(world) == before
    assert world.ask().json()["server"] == "one"


def test_streams_in_flight_end_whole_when_their_slot_is_emptied(world: World) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    answers: list[str] = []

    def stream() -> None:
        answers.append(world.ask(slot="b", stream=True, max_tokens=80, pause=0.05).text)

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    world.apply(phase=Phase.STABLE, b=None)
    world.until(lambda s: "b" not in s.models[MODEL].slots)
    for thread in threads:
        thread.join()
    assert [answer.count("data:") for answer in answers] == [81] * 3
    assert all(answer.endswith("data: [DONE]\n\n") for answer in answers)


def test_metrics_of_both_tracks_and_the_gateway_become_trace_lines(world: World) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    world.apply(phase=Phase.CANARY, step=1, weight=50)
    for _ in range(40):
        assert world.ask().status_code == 200
    time.sleep(0.5)
    tracks = {"a": "baseline", "b": "canary"}
    lines = scrape(world.cluster.scrape_targets(MODEL), tracks, time=1.0)
    assert sorted(line.track for line in lines) == ["baseline"] * 2 + ["canary"] * 2
    assert all(line.up for line in lines)
    by_gateway = {
        line.track: line.counters["envoy_cluster_upstream_rq_total"]
        for line in lines
        if line.instance.startswith("gateway-")
    }
    by_server = {
        line.track: line.counters['vllm:request_success_total{finished_reason="stop"}']
        for line in lines
        if not line.instance.startswith("gateway-")
    }
    assert by_gateway == by_server
    classes = [
        line.counters.get('envoy_cluster_upstream_rq_xx{envoy_response_code_class="2"}')
        for line in lines
        if line.instance.startswith("gateway-")
    ]
    assert sum(n for n in classes if n is not None) == 40
    assert sum(by_gateway.values()) == 40
    assert min(by_gateway.values()) > 4
    rows = AccessLogReader(world.cluster.access_log, model=MODEL).read(tracks)
    assert len(rows) == 40
    assert all(row.status == 200 and row.ttfb and row.duration for row in rows)


def test_up_twice_starts_nothing_and_down_leaves_nothing(world: World) -> None:
    world.release_first("one")
    first = world.cluster.status()
    again = world.cluster.up()
    assert (again.pid, again.gateway.pid) == (first.pid, first.gateway.pid)
    identity = first.cluster
    (server,) = first.models[MODEL].slots["a"].pods
    assert server.pid is not None
    temporary = Path(environment_of(server.pid)["TMPDIR"])
    (temporary / "a-socket-that-nobody-removes").touch()
    bystander = ProcessId.of(os.getpid())
    world.cluster.down()
    assert list(marked("LOCKGATE_LOCAL_CLUSTER", identity)) == []
    assert not world.cluster.running()
    assert not temporary.exists()
    assert bystander is not None
    assert bystander.alive()
    with pytest.raises(ClusterError, match="does not run"):
        world.cluster.status()
    world.cluster.up()
    world.until_ready("a")
    assert world.ask().json()["server"] == "one"


def test_a_taken_api_port_is_an_error_that_names_it(world: World, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = {**world.cluster._settings, "api_port": taken.getsockname()[1]}
        settings["directory"] = tmp_path / "other"
        with pytest.raises(ClusterError, match="Address already in use"):
            LocalCluster(**settings).up(timeout_seconds=30)


def test_manifests_that_cannot_be_read_change_nothing_not_even_after_a_restart(
    world: World,
) -> None:
    world.release_first("one")
    before = pids(world)
    manifests = world.checkout / "models" / MODEL / "local" / "manifests"
    (manifests / f"httproute-{MODEL}.yaml").write_text("kind: [")
    world.commit()
    status = world.until(lambda s: s.models[MODEL].error is not None)
    assert status.synced != status.head
    assert world.ask().json()["server"] == "one"
    os.kill(status.pid, signal.SIGKILL)
    world.cluster.up()
    status = world.until(
        lambda s: s.models[MODEL].route is not None and s.models[MODEL].route.loaded
    )
    assert status.models[MODEL].error is not None
    assert pids(world) == before
    assert world.ask().json()["server"] == "one"


def test_a_cluster_that_lost_its_mirror_and_its_remote_ends_nothing(world: World) -> None:
    world.release_first("one")
    before = world.cluster.status()
    os.kill(before.pid, signal.SIGKILL)
    (world.root / "remote.git").rename(world.root / "away.git")
    shutil.rmtree(world.root / "cluster" / "mirror.git")
    world.cluster.up()
    time.sleep(2)
    assert world.ask().json()["server"] == "one"
    (world.root / "away.git").rename(world.root / "remote.git")
    status = world.until(lambda s: s.synced is not None)
    assert [p.pid for p in status.models[MODEL].slots["a"].pods] == [
        p.pid for p in before.models[MODEL].slots["a"].pods
    ]


@pytest.mark.parametrize("slot", ["a", "b"])
def test_no_request_that_begins_a_second_after_a_servers_death_fails(
    world: World, slot: str
) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    world.apply(phase=Phase.CANARY, step=1, weight=50)
    (victim,) = world.cluster.status().models[MODEL].slots[slot].pods
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        time.sleep(1)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        world.until(lambda s: s.models[MODEL].slots[slot].restarts == 1)
        world.until_ready(slot)
        world.until(lambda s: s.models[MODEL].route.effective == {"a": 50, "b": 50})
        back = time.monotonic()
        world.until(lambda _: traffic.slots_since(back) == {"a", "b"})
    assert [text for began, text in traffic.failed_at if began > killed + 1] == []


def test_an_unready_server_loses_its_traffic_and_gets_it_back_without_a_restart(
    world: World,
) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    world.apply(phase=Phase.CANARY, step=1, weight=50)
    (world.control / "unhealthy-two").touch()
    world.until(lambda s: s.models[MODEL].route.effective == {"a": 100})
    (world.control / "unhealthy-two").unlink()
    status = world.until_ready("b")
    assert status.models[MODEL].slots["b"].restarts == 0
    world.until(lambda s: s.models[MODEL].route.effective == {"a": 50, "b": 50})


def test_a_gateway_port_that_another_program_has_is_an_error_before_anything_starts(
    world: World, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = {**world.cluster._settings, "gateway_ports": {MODEL: port}}
        other = LocalCluster(**{**settings, "directory": tmp_path / "other"})
        with pytest.raises(ClusterError, match=f"port {port}"):
            other.up(timeout_seconds=30)
        assert not other.running()


def test_a_hung_server_is_killed_by_its_liveness_probe_and_comes_back(world: World) -> None:
    world.edit_base(
        "periodSeconds: 10\n            timeoutSeconds: 15\n            failureThreshold: 10",
        "periodSeconds: 1\n            timeoutSeconds: 1\n            failureThreshold: 2",
    )
    world.release_first("one")
    (before,) = world.cluster.status().models[MODEL].slots["a"].pods
    (world.control / "hang-one").touch()
    status = world.until(lambda s: s.models[MODEL].slots["a"].restarts == 1)
    (world.control / "hang-one").unlink()
    status = world.until_ready("a")
    (after,) = status.models[MODEL].slots["a"].pods
    assert (after.name, after.last_exit) == (before.name, "killed: the liveness probe failed")
    assert after.pid != before.pid
    assert world.ask().json()["server"] == "one"
    time.sleep(3)
    assert world.cluster.status().models[MODEL].slots["a"].restarts == 1


def test_a_model_whose_port_is_taken_does_not_hold_up_another(world: World, tmp_path: Path) -> None:
    world.release_first("one")
    ports = json.loads((world.cluster.directory / "gateway" / "ports.json").read_text())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports["other"] = taken.getsockname()[1]
        (world.cluster.directory / "gateway" / "ports.json").write_text(json.dumps(ports))
        os.kill(world.cluster.status().pid, signal.SIGKILL)
        world.cluster.up()
        source = world.checkout / "models" / MODEL
        target = world.checkout / "models" / "other"
        shutil.copytree(source, target)
        for path in target.rglob("*.yaml"):
            text = (
                path.read_text()
                .replace(f"{MODEL}-a", "other-a")
                .replace(f": {MODEL}\n", ": other\n")
            )
            path.write_text(text)
        commit = world.commit()
        status = world.until(lambda s: s.models.get("other") and s.models["other"].gateway_error)
        assert f"port {ports['other']}" in (status.models["other"].gateway_error or "")
        assert not world.cluster.sync(commit, timeout_seconds=1)
        assert world.cluster.sync(commit, model=MODEL, timeout_seconds=5)
        world.apply_model(phase=Phase.DEPLOYING, b=world.occupant("two"))
        world.until_ready("b")
