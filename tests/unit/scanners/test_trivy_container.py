"""trivy as a container: without a network, by digest, never pulled, and removed whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from python_on_whales.exceptions import DockerException

from lockgate.adapters.scanners.trivy import scan_manifests
from lockgate.adapters.scanners.trivy_container import TrivyContainer
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScannerStatus
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import ImageScanPolicy

IMAGE = ImageRef.parse(f"mirror.example/trivy@{Digest.of_bytes(b'trivy')}")
REPORT = {"SchemaVersion": 2, "Results": [{"Target": "a.yaml", "Type": "kubernetes"}]}


class _Container:
    def __init__(self, engine: _Engine, arguments: list[str], options: dict[str, Any]) -> None:
        self._engine = engine
        self._arguments = arguments
        self._options = options
        self.state = SimpleNamespace(running=False, exit_code=0)

    def start(self) -> None:
        if self._engine.breaks and "version" not in self._arguments:
            raise DockerException(["docker", "start"], 125)
        self.state.running = self._engine.hangs and "version" not in self._arguments
        for place, inside, _ in self._options["volumes"]:
            if inside == "/output":
                name = Path(self._arguments[self._arguments.index("--output") + 1]).name
                Path(place, name).write_text(json.dumps(REPORT))

    def logs(self) -> str:
        return json.dumps({"Version": "9.9"})

    def remove(self, force: bool) -> None:
        self._engine.removed += 1


class _Engine:
    """Stands in for python-on-whales' client; records how containers are made."""

    def __init__(self, *, absent: bool = False, breaks: bool = False, hangs: bool = False) -> None:
        self.absent, self.breaks, self.hangs = absent, breaks, hangs
        self.made: list[tuple[str, list[str], dict[str, Any]]] = []
        self.removed = 0
        self.image = SimpleNamespace(inspect=self._inspect)
        self.container = SimpleNamespace(create=self._create)

    def _inspect(self, name: str) -> None:
        if self.absent:
            raise DockerException(["docker", "image", "inspect", name], 1)

    def _create(self, image: str, arguments: list[str], **options: Any) -> _Container:
        self.made.append((image, arguments, options))
        return _Container(self, arguments, options)


def _scan(engine: Any, tmp_path: Path, timeout: float = 30) -> Any:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "a.yaml").write_text("kind: ConfigMap\n")
    scanner = TrivyContainer(IMAGE, client=engine)
    return scan_manifests(
        manifests, ImageScanPolicy(), log=tmp_path / "log", scanner=scanner, timeout=timeout
    )


def test_the_container_has_no_network_no_rights_and_its_digest(tmp_path: Path) -> None:
    engine = _Engine()
    evidence = _scan(engine, tmp_path)
    assert [run.status for run in evidence.runs] == [ScannerStatus.COMPLETED]
    assert evidence.runs[0].version == "9.9"
    for image, _, options in engine.made:
        assert image == str(IMAGE)
        assert options["networks"] == ["none"]
        assert options["pull"] == "never"
        assert options["read_only"]
        assert options["cap_drop"] == ["ALL"]
    assert ("/inputs", "ro") in {(inside, mode) for _, inside, mode in engine.made[1][2]["volumes"]}
    assert engine.removed == len(engine.made)


@pytest.mark.parametrize(
    ("engine", "status"),
    [
        (_Engine(absent=True), ScannerStatus.NOT_INSTALLED),
        (_Engine(breaks=True), ScannerStatus.FAILED),
        (_Engine(hangs=True), ScannerStatus.FAILED),
    ],
    ids=["absent", "broken", "hanging"],
)
def test_an_engine_that_does_not_do_its_work_is_no_pass_and_leaves_no_container(
    engine: _Engine, status: ScannerStatus, tmp_path: Path
) -> None:
    evidence = _scan(engine, tmp_path, timeout=0.2)
    assert [run.status for run in evidence.runs] == [status]
    assert engine.removed == len(engine.made)
