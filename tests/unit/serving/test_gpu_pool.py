from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.domain.spec import Resources, ServingSpec
from lockgate.errors import ServingError
from serving.hardware import no_room_for, visible_gpus
from serving.local.gpu_pool import GpuPool


def test_two_servers_get_gpus_of_their_own_and_share_only_when_none_is_left(tmp_path: Path) -> None:
    pool = GpuPool(tmp_path, gpus=["0", "1"])
    with pool.acquire(1) as candidate, pool.acquire(1) as stable:
        assert {*candidate.gpus, *stable.gpus} == {"0", "1"}
        assert candidate.exclusive
        assert stable.exclusive
        with pool.acquire(2) as third:
            assert third.gpus == ("0", "1")
            assert not third.exclusive
    with pool.acquire(2) as again:
        assert again.exclusive


def test_a_server_without_gpus_takes_none_and_more_than_there_are_is_an_error(
    tmp_path: Path,
) -> None:
    pool = GpuPool(tmp_path, gpus=["GPU-5d1f"])
    with pool.acquire(0) as none:
        assert none.gpus == ()
    with pytest.raises(ServingError, match="2 GPUs are needed, 1 can be used"), pool.acquire(2):
        pass


def test_gpus_hidden_from_this_process_are_lent_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5d1f")
    assert visible_gpus() == ("2", "GPU-5d1f")
    spec = ServingSpec(served_model_name="m", resources=Resources(gpu=1, memory="1Mi"))
    assert no_room_for([spec, spec]) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert no_room_for([spec, spec]) == "2 GPUs are needed, there are 1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert GpuPool(Path("unused")).gpus == ()
