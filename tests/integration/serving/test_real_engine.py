"""Real vLLM: as a test server, and in the embedded cluster behind a real store, real signatures and a real Envoy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster_world import TEMPLATE, World

from lockgate import environments
from lockgate.adapters.metrics import scrape
from lockgate.adapters.oci import open_store
from lockgate.adapters.signing import KeySigner, generate_key
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES
from lockgate.domain.policy import SigningPolicy
from lockgate.domain.release_state import Occupant, Phase, Slot
from lockgate.domain.spec import ServingSpec
from lockgate.errors import ServingError
from serving.ephemeral import serve
from serving.local.cluster import LocalCluster
from serving.processes import ProcessId
from serving.smoke import smoke_generation
from tests import published

TIME = "2026-01-02T03:04:05+00:00"
SERVING = ServingSpec(
    served_model_name="smol",
    max_model_len=1024,
    dtype="bfloat16",
    args=("--enforce-eager",),
    env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    pre_stop_seconds=2,
    drain_seconds=60,
)

_PARENT = """
    import sys, time
    from pathlib import Path
    from lockgate.domain.spec import ServingSpec
    from serving.ephemeral import serve
    serving = ServingSpec.model_validate_json(sys.argv[1])
    with serve(Path(sys.argv[2]), serving, python=Path(sys.argv[3]), log_path=Path(sys.argv[4])) as e:
        print(e.base_url, e.pid, e.fingerprint.model_dump_json(), flush=True)
        time.sleep(600)
"""


def children(pid: int) -> list[ProcessId]:
    """Every descendant of a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in pairs if parent in fresh} - found
        found |= fresh
    return [process for process in map(ProcessId.of, found) if process is not None]


def test_a_test_server_dies_with_its_parent_however_that_dies(
    demo_model: Path, serving_python: Path, tmp_path: Path
) -> None:
    log = tmp_path / "vllm.log"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(_PARENT),
            SERVING.model_dump_json(),
            str(demo_model),
            str(serving_python),
            str(log),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line, log.read_text()[-3000:]
        base_url, pid, fingerprint = line.split(" ", 2)
        assert json.loads(fingerprint)["engine_version"].startswith("0.")
        assert "Paris" in smoke_generation(base_url, "smol").completion
        family = [ProcessId.of(int(pid)), *children(int(pid))]
        assert len(family) >= 3, "the supervisor, vLLM's server and its engine"
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while any(process is not None and process.alive() for process in family):
        assert time.monotonic() < deadline, "something of the server is still alive"
        time.sleep(0.1)


def test_a_model_that_cannot_be_loaded_is_an_error_with_the_servers_own_words(
    serving_python: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "no-such-model"}')
    log = tmp_path / "vllm.log"
    with (
        pytest.raises(ServingError, match="no-such-model") as caught,
        serve(model, SERVING, python=serving_python, log_path=log, ready_seconds=200),
    ):
        pass
    assert caught.value.log == log


@pytest.fixture
def real_world(
    demo_model: Path, serving_python: Path, tmp_path: Path, kubectl: Path
) -> Iterator[World]:
    """A store with a signed candidate in it, and a cluster that trusts the key."""
    remote, checkout = tmp_path / "remote.git", tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", remote], check=True)
    subprocess.run(["git", "clone", "-q", remote, checkout], check=True, capture_output=True)
    shutil.copytree(TEMPLATE / "apps", checkout / "apps")
    generate_key(tmp_path / "key", tmp_path / "key.pub")
    cluster = LocalCluster(
        tmp_path / "cluster",
        remote=str(remote),
        store=f"oci:{tmp_path / 'store'}",
        signing=SigningPolicy(public_keys=((tmp_path / "key.pub").read_text(),)),
        gates=REQUIRED_GATES,
        serving_python=serving_python,
        runtime_environment=Digest(environments.environment_digest("serving")),
        snapshots=tmp_path / "snapshots",
    )
    world = World(tmp_path, tmp_path, cluster)
    world.git("checkout", "-q", "-b", "main")
    world.commit()
    cluster.up()
    try:
        yield world
    finally:
        cluster.down()


def publish(world: World, model: Path, **changes: Any) -> Occupant:
    """Packages, signs and attests a candidate as the supply chain does."""
    store = open_store(f"oci:{world.root / 'store'}")
    signer = KeySigner(world.root / "key")
    serving = SERVING.model_copy(update=changes)
    candidate, evidence = published.publish(store, signer, model, serving, decided_at=TIME)
    return Occupant(candidate=candidate, release="r1", evidence=evidence)


def test_a_signed_candidate_is_served_and_its_streams_end_whole_when_it_is_taken_away(
    real_world: World, demo_model: Path
) -> None:
    world = real_world
    occupant = publish(world, demo_model)
    world.apply(phase=Phase.DEPLOYING, a=occupant)
    world.until(lambda s: s.models["tiny"].slots["a"].settled, seconds=400)
    world.apply(phase=Phase.STABLE, stable=Slot.A)
    url = world.cluster.gateway_url("tiny")
    assert "Paris" in smoke_generation(url, "smol").completion

    (pod,) = world.cluster.status().models["tiny"].slots["a"].pods
    assert os.getpriority(os.PRIO_PROCESS, pod.pid or 0) == 5
    (engine, gateway) = scrape(
        world.cluster.scrape_targets("tiny"), {"a": "baseline"}, time=time.time()
    )
    assert sum(v for k, v in engine.counters.items() if "request_success" in k) == 2
    assert len(engine.histograms["vllm:time_to_first_token_seconds"].le) > 50
    assert gateway.counters["envoy_cluster_upstream_rq_total"] == 2

    # Another candidate of the same image was never attested: its pod does not start.
    world.apply(
        phase=Phase.DEPLOYING,
        b=occupant.model_copy(
            update={
                "candidate": occupant.candidate.model_copy(
                    update={"serving": SERVING.model_copy(update={"max_num_seqs": 4})}
                )
            }
        ),
    )
    status = world.until(lambda s: bool(s.models["tiny"].slots["b"].refusals))
    assert "gate" in status.models["tiny"].slots["b"].refusals[0]
    assert status.models["tiny"].slots["b"].pods[0].pid is None

    ends: list[tuple[str, int]] = []

    def stream() -> None:
        body = {
            "model": "smol",
            "prompt": "Once upon a time",
            "max_tokens": 150,
            "ignore_eos": True,
            "stream": True,
        }
        with httpx.stream(
            "POST",
            f"{url}/v1/completions",
            json=body,
            timeout=120,
            headers={"x-lockgate-slot": "a"},
        ) as response:
            events = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        last = json.loads(events[-2])["choices"][0]["finish_reason"] if len(events) > 1 else ""
        ends.append((f"{last} {events[-1]}", len(events)))

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    assert ends == [], "too short a stream to tell anything"
    world.apply(phase=Phase.EMPTY, stable=None, a=None, b=None)
    world.until(lambda s: not s.models.get("tiny") or not s.models["tiny"].slots, seconds=100)
    for thread in threads:
        thread.join()
    assert [end for end, _ in ends] == ["length [DONE]"] * 3
    assert ProcessId.of(pod.pid or 0) is None
