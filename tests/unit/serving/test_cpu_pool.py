from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.errors import ServingError
from serving.local.cpu_pool import CpuPool, SharedCores


def test_cores_are_lent_to_one_server_each_and_shared_evenly_when_none_is_free(
    tmp_path: Path,
) -> None:
    pool = CpuPool(tmp_path, cores=[0, 1])
    with pool.acquire(1) as first, pool.acquire(1) as second:
        assert {*first.cores, *second.cores} == {0, 1}
        assert first.exclusive
        assert second.exclusive
        with pool.acquire(1) as third, pool.acquire(1) as fourth:
            assert {*third.cores, *fourth.cores} == {0, 1}
            assert not third.exclusive
    with pool.acquire(2) as both:
        assert both.cores == (0, 1)
        assert both.exclusive


def test_a_core_stays_lent_to_the_server_that_inherited_it_and_is_free_when_that_is_killed(
    tmp_path: Path,
) -> None:
    pool = CpuPool(tmp_path, cores=[0])
    with pool.acquire(1) as lease:
        server = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=lease.fds
        )
    try:
        with pool.acquire(1) as shared:
            assert not shared.exclusive
    finally:
        server.kill()
        server.wait()
    with pool.acquire(1) as again:
        assert again.exclusive


def test_more_cores_than_there_are_give_all_there_are(tmp_path: Path) -> None:
    with CpuPool(tmp_path, cores=[3, 5]).acquire(8) as lease:
        assert lease.cores == (3, 5)


def test_a_pool_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServingError, match="pool"):
        CpuPool(tmp_path / "file", cores=[0]).acquire(1)


def test_servers_that_share_a_lease_get_the_same_cores_and_hold_them_until_the_last_is_gone(
    tmp_path: Path,
) -> None:
    pool = CpuPool(tmp_path, cores=[0, 1])
    with pool.acquire(2) as lease:
        cores = SharedCores(lease)
        first, second = cores.acquire(1), cores.acquire(2)
    assert (first.cores, second.cores) == ((0,), (0, 1))
    first.close()
    with pool.acquire(1) as other:
        assert not other.exclusive
    second.close()
    with pool.acquire(2) as again:
        assert again.exclusive
