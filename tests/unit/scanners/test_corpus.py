"""Malicious models are blocked, each for its own reason; benign ones pass; and nothing of them is ever run."""

from __future__ import annotations

import pickle
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lockgate.adapters.scanners import ENGINES, scan_weights
from lockgate.adapters.scanners.engine import ScanJob
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence, ScannerStatus, Severity
from lockgate.domain.gates import Decision
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import DEFAULT_FORMATS, Policy, WeightScanPolicy
from tests.unit.scanners.corpus import MALICIOUS, pickled
from tests.unit.scanners.models import CONFIG, benign, write
from tests.unit.scanners.sound_models import BENIGN

STRUCTURE = WeightScanPolicy(scanners=("structure",))
PICKLES = WeightScanPolicy(scanners=("structure", "picklescan"))


def _scan(directory: Path, policy: WeightScanPolicy = PICKLES) -> ScanEvidence:
    return scan_weights(
        directory,
        read_snapshot(directory, strict=False),
        policy,
        log_directory=directory.parent / "logs",
    )


def _gate(evidence: ScanEvidence, policy: WeightScanPolicy = PICKLES) -> Decision:
    return scan_gate(
        [evidence], Policy(weights=policy), now=datetime.now(UTC), required_kinds=("weights",)
    ).decision


def _build(name: str, place: Path) -> Path:
    # Without a template: each is rendered in a process of its own.
    directory = benign(place / re.sub(r"\W+", "-", name), template="")
    MALICIOUS[name].build(directory, place / "canary")
    return directory


@pytest.fixture(scope="module")
def found_in_pickles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What picklescan finds, by model: one process looks at all of them."""
    place = tmp_path_factory.mktemp("corpus")
    models = place / "models"
    names = {_build(n, models).name: n for n, case in MALICIOUS.items() if not case.slow}
    job = ScanJob(models, read_snapshot(models, strict=False), PICKLES, place / "logs")
    look = ENGINES["picklescan"].scan(job)
    assert look.failure == ""
    assert not (models / "canary").exists()
    found: dict[str, set[str]] = {name: set() for name in MALICIOUS}
    for finding in look.findings:
        found[names[finding.path.split("/")[0]]].add(finding.rule)
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if c.slow else ()) for n, c in MALICIOUS.items()],
)
def test_a_malicious_model_is_blocked_for_its_own_reason_and_not_run(
    name: str, tmp_path: Path, found_in_pickles: dict[str, set[str]]
) -> None:
    evidence = _scan(_build(name, tmp_path), STRUCTURE)

    found = {finding.rule for finding in evidence.findings} | found_in_pickles[name]
    rule = MALICIOUS[name].rule
    # On a busy machine a template that would take all memory runs out of time first.
    assert rule in found or (rule == "template-bomb" and "template-hangs" in found)
    assert _gate(evidence, STRUCTURE) is Decision.FAIL
    assert all(run.status is ScannerStatus.COMPLETED for run in evidence.runs)
    assert not (tmp_path / "canary").exists()


def test_the_corpus_is_as_large_as_is_said() -> None:
    assert len(MALICIOUS) >= 100
    assert len({case.kind for case in MALICIOUS.values()}) >= 20
    assert len(BENIGN) >= 20


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The payload of the corpus is live: the test above would see it run."""
    canary = tmp_path / "canary"
    pickle.loads(pickled(canary))
    assert canary.exists()


@pytest.mark.parametrize("name", BENIGN)
def test_nothing_is_found_in_the_structure_of_a_benign_model(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    BENIGN[name](directory)
    found = _scan(directory, STRUCTURE).findings
    assert [f for f in found if f.severity is not Severity.LOW] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "plain" else pytest.mark.slow) for n in BENIGN]
)
def test_a_benign_model_passes(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    BENIGN[name](directory)

    evidence = _scan(directory)

    assert [f for f in evidence.findings if f.severity is not Severity.LOW] == []
    assert _gate(evidence) is Decision.PASS


def test_a_pickle_without_danger_passes_where_the_policy_takes_pickles(tmp_path: Path) -> None:
    policy = PICKLES.model_copy(update={"formats": (*DEFAULT_FORMATS, ".pkl")})
    directory = benign(tmp_path / "model", template="")
    write(directory, "state.pkl", pickle.dumps({"step": 3, "rates": [0.1, 0.2]}))
    assert _gate(_scan(directory, policy), policy) is Decision.PASS

    write(directory, "state.pkl", pickled(tmp_path / "canary"))
    assert _gate(_scan(directory, policy), policy) is Decision.FAIL
    assert not (tmp_path / "canary").exists()


def test_a_model_without_a_license_is_blocked_where_the_policy_asks_for_one(tmp_path: Path) -> None:
    directory = benign(tmp_path / "model", template="")
    (directory / "LICENSE").unlink()
    (directory / "README.md").unlink()
    strict = WeightScanPolicy(scanners=("structure",), license_required=True)
    assert _gate(_scan(directory, STRUCTURE), STRUCTURE) is Decision.PASS
    assert _gate(_scan(directory, strict), strict) is Decision.FAIL


@pytest.mark.parametrize("change", ["link", "addition", "truncation", "other bytes"])
def test_a_directory_that_changed_after_it_was_fetched_is_blocked(
    change: str, tmp_path: Path
) -> None:
    directory = benign(tmp_path / "model", template="")
    snapshot = read_snapshot(directory)
    if change == "link":
        (directory / "tokenizer.json").unlink()
        (directory / "tokenizer.json").symlink_to("/etc/hostname")
    elif change == "addition":
        write(directory, "more.json", "{}")
    elif change == "truncation":
        write(directory, "LICENSE", "")
    else:
        write(directory, "config.json", {**CONFIG, "vocab_size": 129})
    evidence = scan_weights(directory, snapshot, STRUCTURE, log_directory=tmp_path / "logs")
    assert _gate(evidence, STRUCTURE) is Decision.FAIL


def test_a_scanner_that_breaks_is_failed_and_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = benign(tmp_path / "model")
    monkeypatch.setattr("lockgate.adapters.scanners.worker.sys.executable", "/nonexistent/python")
    evidence = _scan(directory, WeightScanPolicy())
    assert {run.status for run in evidence.runs} == {ScannerStatus.FAILED}
    assert len(evidence.runs) == 3
    assert _gate(evidence, WeightScanPolicy()) is Decision.FAIL


def test_a_scanner_that_nobody_knows_is_not_a_pass(tmp_path: Path) -> None:
    policy = WeightScanPolicy(scanners=("structure", "crystal-ball"))
    evidence = _scan(benign(tmp_path / "model"), policy)
    assert _gate(evidence, policy) is Decision.FAIL


def test_a_scanner_that_crashes_on_a_file_is_failed_and_the_others_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(job: ScanJob) -> None:
        raise RuntimeError("a file that nobody thought of")

    broken = ENGINES["picklescan"].__class__(name="picklescan", version=lambda: "1", scan=crash)  # type: ignore[arg-type]
    monkeypatch.setitem(ENGINES, "picklescan", broken)
    evidence = _scan(benign(tmp_path / "model", template=""))
    assert {run.name: run.status for run in evidence.runs} == {
        "structure": ScannerStatus.COMPLETED,
        "picklescan": ScannerStatus.FAILED,
    }
    assert _gate(evidence) is Decision.FAIL


def test_an_optional_scanner_that_is_absent_is_named_and_one_that_is_required_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ENGINES["modelaudit"].__class__(
        name="modelaudit", version=lambda: None, scan=ENGINES["modelaudit"].scan
    )
    monkeypatch.setitem(ENGINES, "modelaudit", absent)
    directory = benign(tmp_path / "model", template="")
    optional = WeightScanPolicy(scanners=("structure",), optional_scanners=("modelaudit",))
    required = WeightScanPolicy(scanners=("structure", "modelaudit"))
    evidence = _scan(directory, optional)
    decided = scan_gate(
        [evidence], Policy(weights=optional), now=datetime.now(UTC), required_kinds=("weights",)
    )
    assert decided.decision is Decision.PASS
    assert any("NOT SCANNED by modelaudit" in reason for reason in decided.reasons)
    assert _gate(_scan(directory, required), required) is Decision.FAIL


def test_every_finding_names_the_bytes_it_is_about(tmp_path: Path) -> None:
    directory = benign(tmp_path / "model", template="")
    write(directory, "modeling_x.py", "import os\n")
    (finding,) = _scan(directory, STRUCTURE).findings
    assert finding.digest == Digest.of_bytes(b"import os\n")


def test_a_license_text_is_accepted_by_its_digest_or_not_at_all(tmp_path: Path) -> None:
    directory = benign(tmp_path / "model", template="")
    write(directory, "LICENSE", "You may do as our lawyers agreed on the third of May.")
    known = WeightScanPolicy(scanners=("structure",), license_text="known")
    (text,) = (f for f in read_snapshot(directory).files if f.path == "LICENSE")
    accepted = known.model_copy(update={"license_texts": (text.digest,)})
    assert _gate(_scan(directory, STRUCTURE), STRUCTURE) is Decision.PASS
    assert _gate(_scan(directory, known), known) is Decision.FAIL
    assert _gate(_scan(directory, accepted), accepted) is Decision.PASS
    (directory / "LICENSE").unlink()
    required = known.model_copy(update={"license_text": "required"})
    assert _gate(_scan(directory, known), known) is Decision.PASS
    assert _gate(_scan(directory, required), required) is Decision.FAIL
