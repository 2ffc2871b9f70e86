"""What a plan says about seconds."""

from __future__ import annotations

from pathlib import Path

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.digests import Digest
from lockgate.domain.durations import Predicted
from tasks import durations

HERE, ELSEWHERE = Digest.of_bytes(b"here"), Digest.of_bytes(b"elsewhere")


def test_a_plan_takes_the_median_of_the_same_work_on_the_same_hardware(tmp_path: Path) -> None:
    records = StepRecords(open_store(f"oci:{tmp_path}"), "lockgate.local/records")

    def predicted(hardware: Digest, work: object) -> Predicted:
        return durations.predicted(
            records, "evaluate", default=7, reason="a guess", work=work, hardware=hardware
        )

    assert predicted(HERE, "long") == Predicted(seconds=7, basis="no earlier run: a guess")
    for seconds, work in ((100, "long"), (110, "long"), (900, "long"), (10, "short")):
        durations.remember(records, "evaluate", seconds, work=work, hardware=HERE)
    durations.remember(records, "evaluate", 1, work="long", hardware=ELSEWHERE)
    assert predicted(HERE, "long").seconds == 110
    assert predicted(HERE, "short").seconds == 10
    unknown = predicted(HERE, "another")
    assert unknown.seconds == 105
    assert "4 earlier runs with other work" in unknown.basis
    assert predicted(ELSEWHERE, "long").seconds == 1


def test_only_the_newest_runs_count(tmp_path: Path) -> None:
    records = StepRecords(open_store(f"oci:{tmp_path}"), "lockgate.local/records")
    for _ in range(durations.KEPT):
        durations.remember(records, "serve", 100, hardware=HERE)
    for _ in range(durations.KEPT):
        durations.remember(records, "serve", 30, hardware=HERE)
    found = durations.predicted(records, "serve", default=7, reason="", hardware=HERE)
    assert found.seconds == 30
