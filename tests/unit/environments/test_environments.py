"""Looking environments up, and making them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lockgate import environments, installation
from lockgate.environments import ENVIRONMENTS, environment_digest, environment_python
from lockgate.errors import EnvironmentMissing
from lockgate.pip_runs import NoSuchDistribution, run_logged


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no overriding interpreters."""
    for environment in ENVIRONMENTS.values():
        if environment.override:
            monkeypatch.delenv(environment.override, raising=False)
    monkeypatch.setenv("LOCKGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_missing_environment_names_the_command_that_makes_it(cache: Path) -> None:
    with pytest.raises(EnvironmentMissing, match=r"-m lockgate\.environments serving"):
        environment_python("serving")


def test_an_environment_is_found_by_what_it_is_made_from(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "clone" / "locks" / "serving.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("one==1\n")
    monkeypatch.setattr(environments, "REPOSITORY", tmp_path / "clone")
    before = environment_digest("serving"), environments.environment_directory("serving")
    assert before[1].is_relative_to(cache)
    lock.write_text("one==2\n")
    assert environment_digest("serving") != before[0]
    assert environments.environment_directory("serving") != before[1]
    lock.write_text("one==1\n")
    assert (environment_digest("serving"), environments.environment_directory("serving")) == before


def test_an_overriding_interpreter_is_known_by_what_is_installed_in_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = environment_digest("serving")
    monkeypatch.setenv("LOCKGATE_SERVING_PYTHON", sys.executable)
    assert environment_python("serving") == Path(sys.executable)
    assert environment_digest("serving") == environment_digest("serving") != locked


def test_an_override_that_cannot_be_run_is_refused_by_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_SERVING_PYTHON", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentMissing, match="LOCKGATE_SERVING_PYTHON"):
        environment_digest("serving")


def test_kubectl_on_path_wins_over_the_pinned_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = environments.KUBECTL.path()
    pinned.parent.mkdir(parents=True)
    pinned.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environments.kubectl_path() == pinned
    (tmp_path / "kubectl").touch(mode=0o755)
    assert environments.kubectl_path() == tmp_path / "kubectl"


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "lack", ["ERROR: No matching distribution found for torch", "ERROR: ResolutionImpossible: see"]
)
def test_the_public_cpu_index_is_asked_only_where_the_configured_sources_lack_the_cpu_build(
    tmp_path: Path, lack: str
) -> None:
    asked = tmp_path / "asked"
    record = f'echo "$*" >> {asked}'
    log = tmp_path / "log"

    installation.install_cpu_torch(script(tmp_path / "has-it", record), log)
    assert asked.read_text().count("\n") == 1
    assert "--extra-index-url" not in asked.read_text()

    asked.unlink()
    lacks = f'{record}; case "$*" in *extra-index*) ;; *) echo "{lack}"; exit 1;; esac'
    installation.install_cpu_torch(script(tmp_path / "lacks-it", lacks), log)
    first, second = asked.read_text().splitlines()
    assert "--extra-index-url" not in first
    assert installation.PYTORCH_CPU_INDEX in second
    # A plain version would bring the CUDA build.
    assert "torch==2.13.0+cpu" in first
    assert "torch==2.13.0+cpu" in second


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "not the one that was locked"),
        ("Max retries exceeded; No matching distribution found", "cannot be reached"),
    ],
)
def test_a_failed_installation_says_what_went_wrong_and_where_the_log_is(
    tmp_path: Path, said: str, meaning: str
) -> None:
    log = tmp_path / "log"
    with pytest.raises(EnvironmentMissing, match=meaning) as raised:
        run_logged(["sh", "-c", f"echo '{said}'; exit 1"], log, 30, "pip failed")
    assert not isinstance(raised.value, NoSuchDistribution)
    assert str(log) in str(raised.value)
    assert said in log.read_text()


def test_credentials_of_an_index_stay_out_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import sys; print('Looking in https://user:' + 'secret'.upper() + '@index.example/')"
    run_logged([sys.executable, "-c", program], log, 30, "failed")
    assert "SECRET" not in log.read_text()
    assert "https://***@index.example/" in log.read_text()


def test_a_hung_installation_is_ended_at_its_time_limit(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="no end within"):
        run_logged(["sh", "-c", "sleep 600"], tmp_path / "log", 0.5, "pip failed")


def test_a_killed_installer_leaves_no_process_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "from pathlib import Path; from lockgate.pip_runs import run_logged\n"
        f"run_logged(['sh', '-c', 'echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600'],"
        f" Path({str(tmp_path / 'log')!r}), 600, 'failed')"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as installer:
        while not pid_file.exists():
            time.sleep(0.02)
        child = int(pid_file.read_text())
        installer.send_signal(signal.SIGKILL)
    while _is_running(child):
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # An orphan that nobody reaps stays as a zombie where process 1 is no init.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
