"""Making an environment for real, from a lock that needs no network."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from lockgate import environments, installation
from lockgate.environments import ENVIRONMENTS, environment_python
from lockgate.errors import EnvironmentMissing


@pytest.fixture
def small_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The serving environment with an empty lock, in an empty cache."""
    lock = tmp_path / "clone" / "locks" / "serving.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("# nothing\n")
    monkeypatch.delenv("LOCKGATE_SERVING_PYTHON", raising=False)
    monkeypatch.setenv("LOCKGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "REPOSITORY", tmp_path / "clone")
    small = dataclasses.replace(ENVIRONMENTS["serving"], torch=False, check="import pip")
    monkeypatch.setitem(ENVIRONMENTS, "serving", small)


@pytest.mark.usefixtures("small_serving")
def test_an_interrupted_environment_is_not_used_and_made_again_once() -> None:
    directory = environments.environment_directory("serving")
    leftover = directory / "bin" / "python"
    leftover.parent.mkdir(parents=True)
    leftover.symlink_to(sys.executable)
    (directory / "half-written").touch()
    with pytest.raises(EnvironmentMissing):
        environment_python("serving")

    python = installation.ensure_environment(ENVIRONMENTS["serving"])
    assert environment_python("serving") == python
    assert not (directory / "half-written").exists()

    (directory / "kept").touch()
    installation.ensure_environment(ENVIRONMENTS["serving"])
    assert (directory / "kept").exists()
