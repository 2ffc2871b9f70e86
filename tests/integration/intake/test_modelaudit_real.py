"""The real modelaudit over every benign model of the corpus, in one process: it may hold none of them up."""

from __future__ import annotations

import re
from pathlib import Path

from lockgate.adapters.scanners import ENGINES
from lockgate.adapters.scanners.engine import ScanJob
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.evidence import Severity
from lockgate.domain.policy import WeightScanPolicy
from tests.unit.scanners.sound_models import BENIGN


def test_no_benign_model_is_held_up(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name, build in BENIGN.items():
        directory = models / re.sub(r"\W+", "-", name)
        directory.mkdir(parents=True)
        build(directory)
    job = ScanJob(models, read_snapshot(models), WeightScanPolicy(), tmp_path / "logs")
    look = ENGINES["modelaudit"].scan(job)
    assert look.failure == ""
    assert [f for f in look.findings if f.severity is not Severity.LOW] == []
