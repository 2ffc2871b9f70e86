"""The test server's errors, with a small server in the engine's place."""

from __future__ import annotations

import socket
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_engine

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import Resources, ServingSpec
from lockgate.errors import ServingError
from serving.candidate_server import CandidateServer, Endpoint
from serving.engines import registry
from serving.ephemeral import ProcessServer, serve
from serving.local.cpu_pool import CpuPool
from serving.local.gpu_pool import GpuPool
from serving.processes import ProcessId
from serving.smoke import WARM_UP_REQUESTS


def served(
    tmp_path: Path, resources: Resources | None = None, **arguments: Any
) -> AbstractContextManager[Endpoint]:
    (tmp_path / "model").mkdir(exist_ok=True)
    env = {"TINY_CONTROL": f"dir:{tmp_path}", "TINY_NAME": "x"}
    return serve(
        tmp_path / "model",
        ServingSpec(served_model_name="tiny", env=env, resources=resources or Resources()),
        python=Path(sys.executable),
        log_path=tmp_path / "server.log",
        cpu_pool=CpuPool(tmp_path / "cpus"),
        engine=tiny_engine.TinyEngine(),
        **arguments,
    )


def test_a_server_is_up_inside_the_context_and_gone_after_it_with_its_cores(tmp_path: Path) -> None:
    with served(tmp_path) as endpoint:
        assert httpx.get(f"{endpoint.base_url}/health").status_code == 200
        process = ProcessId.of(endpoint.pid)
        assert process is not None
        assert endpoint.fingerprint.cores == 1
        assert "0.0.0.0" in endpoint.fingerprint.arguments
        assert endpoint.exclusive_cores
        answered = int(httpx.get(endpoint.metrics_url).text.split()[-1])
        assert answered == 2 + WARM_UP_REQUESTS + 1, "smoke generation, a batch, log-probabilities"
    assert not process.alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{endpoint.base_url}/health")
    assert (tmp_path / "server.log").exists()


def test_two_servers_on_two_gpus_see_one_each(tmp_path: Path) -> None:
    pool = GpuPool(tmp_path / "gpus", gpus=["0", "1"])
    one = Resources(gpu=1)
    with served(tmp_path, one, gpu_pool=pool) as a, served(tmp_path, one, gpu_pool=pool) as b:
        seen = [Path(f"/proc/{server.pid}/environ").read_text() for server in (a, b)]
    visible = {next(v for v in env.split("\0") if v.startswith("CUDA_VISIBLE")) for env in seen}
    assert visible == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}


def test_a_candidate_is_served_through_the_interface_that_a_cluster_has_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ENGINES, "vllm", tiny_engine.TinyEngine())
    image = ImageRef.parse("lockgate.local/tiny@" + Digest.of_bytes(b"model"))
    serving = ServingSpec(served_model_name="tiny", env={"TINY_CONTROL": f"dir:{tmp_path}"})
    asked: list[ImageRef] = []

    def directory(wanted: ImageRef) -> Path:
        asked.append(wanted)
        return tmp_path

    server: CandidateServer = ProcessServer(lambda: Path(sys.executable), directory)
    candidate = Candidate(model=image, runtime=image, serving=serving)
    with server.serve(candidate, log_path=tmp_path / "server.log") as endpoint:
        assert endpoint.model_name == "tiny"
        assert endpoint.fingerprint.hardware == server.hardware(serving)
    assert asked == [image]


def test_a_server_that_never_becomes_healthy_is_an_error_and_is_ended(tmp_path: Path) -> None:
    (tmp_path / "unhealthy-x").touch()
    with (
        pytest.raises(ServingError, match=r"not healthy after 2 s \(status 503\)"),
        served(tmp_path, ready_seconds=2),
    ):
        pass


def test_a_server_that_dies_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "die-x").touch()
    with pytest.raises(ServingError, match="told to die") as caught, served(tmp_path):
        pass
    assert caught.value.log == tmp_path / "server.log"


def test_a_server_that_answers_nonsense_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nonsense-x").touch()
    with pytest.raises(ServingError, match="degenerate"), served(tmp_path):
        pass


def test_a_taken_port_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port}"), served(tmp_path, port=port):
            pass
    assert not (tmp_path / "server.log").exists()
