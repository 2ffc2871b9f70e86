"""What a scan tells others: SARIF, CycloneDX, and the command's exit status."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from lockgate.adapters.scanners import scan_weights
from lockgate.adapters.sources import read_snapshot
from lockgate.cli.app import app
from lockgate.domain.policy import Policy, Waiver, WeightScanPolicy
from lockgate.domain.scanning.cyclonedx import to_cyclonedx
from lockgate.domain.scanning.sarif import to_sarif
from tests.unit.scanners.models import benign, write

POLICY = Policy(weights=WeightScanPolicy(scanners=("structure", "crystal-ball")))
NOW = datetime.now(UTC)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = benign(tmp_path / "model", template="")
    write(directory, "modeling ü.py", "import os\n")
    write(directory, "notes.txt", "hf_" + "aBcDe" * 6 + "aBcD\n")
    return directory


def _document(model: Path, make: Any, policy: Policy = POLICY) -> dict[str, Any]:
    snapshot = read_snapshot(model)
    evidence = scan_weights(model, snapshot, policy.weights, log_directory=model.parent / "logs")
    return json.loads(json.dumps(make(evidence, snapshot, policy, NOW)))


def _waived(model: Path) -> Policy:
    (file,) = (f for f in read_snapshot(model).files if f.path.endswith(".py"))
    waiver = Waiver(
        rule="code-file", digest=file.digest, reason="read by J. Doe",
        until=(NOW + timedelta(days=2)).date(),
    )  # fmt: skip
    return POLICY.model_copy(update={"waivers": (waiver,)})


def test_sarif_names_every_scanner_finding_and_file(model: Path) -> None:
    log = _document(model, to_sarif)
    assert log["version"] == "2.1.0"
    ours, absent = log["runs"]
    assert ours["tool"]["driver"]["name"] == "structure"
    assert ours["tool"]["driver"]["version"]
    assert ours["invocations"][0]["executionSuccessful"]
    rules = [rule["id"] for rule in ours["tool"]["driver"]["rules"]]
    found = {result["ruleId"]: result for result in ours["results"]}
    assert set(found) == {"code-file", "secret"} == set(rules)
    assert all(rules[r["ruleIndex"]] == r["ruleId"] for r in ours["results"])
    code = found["code-file"]
    assert code["level"] == "error"
    where = code["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert where == "modeling%20%C3%BC.py"
    assert where in [artifact["location"]["uri"] for artifact in ours["artifacts"]]
    assert not absent["invocations"][0]["executionSuccessful"]
    assert "NOT SCANNED" in json.dumps(absent["invocations"])


def test_sarif_suppresses_what_is_waived_and_only_that(model: Path) -> None:
    log = _document(model, to_sarif, _waived(model))
    suppressed = {r["ruleId"] for r in log["runs"][0]["results"] if "suppressions" in r}
    assert suppressed == {"code-file"}


def test_cyclonedx_is_valid_and_refers_to_files_that_it_lists(model: Path) -> None:
    document = _document(model, to_cyclonedx, _waived(model))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    listed = {component["bom-ref"] for component in document["components"]}
    assert {a["ref"] for v in document["vulnerabilities"] for a in v["affects"]} <= listed
    assert {v["analysis"]["state"] for v in document["vulnerabilities"]} == {
        "in_triage",
        "exploitable",
    }
    assert document == _document(model, to_cyclonedx, _waived(model)) | {
        "serialNumber": document["serialNumber"],
        "metadata": document["metadata"],
    }


@pytest.mark.parametrize(
    ("scanners", "change", "status"),
    [
        (["structure"], None, 0),
        (["structure"], "code", 3),
        (["structure"], "link", 3),
        (["structure"], "license", 3),
        (["structure", "crystal-ball"], None, 1),
        (["structure", "crystal-ball"], "code", 1),
    ],
)
def test_the_command_exits_0_clean_3_with_findings_1_if_a_scanner_did_not_do_its_work(
    scanners: list[str],
    change: str | None,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    directory = benign(tmp_path / "model", template="")
    if change == "code":
        write(directory, "modeling_x.py", "import os\n")
    elif change == "link":
        (directory / "loop.json").symlink_to("loop.json")
    policy = {"weights": {"scanners": scanners, "licenses": ["mit" if change == "license" else "apache-2.0"]}}  # fmt: skip
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    ended = CliRunner().invoke(
        app,
        ["scan", str(directory), "--policy", str(tmp_path / "policy.yaml"), "--json",
         "--sarif", str(tmp_path / "o.sarif"), "--cyclonedx", str(tmp_path / "o.json")],
    )  # fmt: skip
    assert ended.exit_code == status, ended.output
    said = json.loads(ended.stdout)
    assert (said["result"]["decision"] == "pass") == (status == 0)
    assert json.loads((tmp_path / "o.sarif").read_text())["version"] == "2.1.0"
    assert json.loads((tmp_path / "o.json").read_text())["bomFormat"] == "CycloneDX"
