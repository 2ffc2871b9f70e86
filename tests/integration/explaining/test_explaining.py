"""What became of a release, from real Git, a real image store and the workspace's own records."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from lockgate.adapters import sources
from lockgate.adapters.oci.package import push_model
from lockgate.cli.app import app
from lockgate.domain import attestation, gitops
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, ScanEvidence
from lockgate.domain.gates import Decision, GateReport, GateResult
from lockgate.domain.judge import JudgeReport, Verdict
from lockgate.domain.judge.report import MetricVerdict
from lockgate.domain.release_state import Occupant, Phase
from lockgate.domain.rollout import Transition, start
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import Measurements, ReleaseOutcome
from lockgate.errors import QuantizationError, UsageError
from lockgate.settings import Settings
from tasks.failures import followed
from tasks.reporting import record_outcome
from tasks.steps import step
from tasks.workspace import Workspace
from tests.integration.git.repositories import make_remote, render, taking
from tests.unit.explaining.test_comparison import scores
from tests.unit.gates.test_benchmark_gate import evidence, profile
from tests.unit.rollout.world import SPEC, Rollout, candidate, verdict

SUITE = Digest.of_bytes(b"suite")
JUDGED = JudgeReport(
    verdict=Verdict.FAIL, reasons=("time to first token is 80% longer",),
    metrics=(
        MetricVerdict(
            name="ttft", verdict=Verdict.FAIL, estimate=0.8, interval=(0.5, 1.1), margin=0.1
        ),
        MetricVerdict(name="failures", verdict=Verdict.PASS),
    ),
)  # fmt: skip


class World:
    """A model `m` in `prod`: `old` is stable, and whatever a test does after that."""

    def __init__(self, root: Path) -> None:
        make_remote(root)
        self.root, self.rollout = root, Rollout()
        self.workspace = Workspace(Settings())
        self.starts("old", right=80)
        self.sees()

    def candidate(self, name: str) -> Candidate:
        directory = self.root / "models" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"name": name}))
        image = push_model(
            self.workspace.store, "lockgate.local/models/m", directory,
            sources.read_snapshot(directory), labels={},
        )  # fmt: skip
        return candidate(name).model_copy(update={"model": image})

    def measured(self, name: str, right: int) -> Measurements:
        who = self.candidate(name)
        scored = EvaluationEvidence(
            subject=who.digest, suite=SUITE, harness="h", tasks=(scores(right),), seconds=1
        )
        return Measurements(candidate=who, evaluation=scored, benchmark=evidence(profile()))

    def attested(self, name: str, right: int) -> Digest:
        """What the gates' signed predicate of a candidate names, kept in the store."""
        measured, records = self.measured(name, right), self.workspace.records
        scan = ScanEvidence(
            subject=measured.candidate.model.digest, subject_kind="image", runs=(), findings=(),
            seconds=1,
        )  # fmt: skip
        report = GateReport(
            candidate=measured.candidate.digest, required=("scan",),
            results=(GateResult(gate="scan", decision=Decision.PASS, reasons=("clean",)),),
        )  # fmt: skip
        documents = {
            "evaluation": measured.evaluation, "benchmark": measured.benchmark,
            "scan-0-image": scan,
        }  # fmt: skip
        predicate = attestation.gate_predicate(
            measured.candidate, policy=SUITE, report=report, decided_at="2026-11-23T12:00:00Z",
            evidence={k: records.put_document(d.to_data()) for k, d in documents.items()},
        )  # fmt: skip
        return records.put_document(predicate.to_data())

    def starts(self, name: str, right: int) -> None:
        who = Occupant(
            candidate=self.candidate(name), release=f"m-{name}-1", requested_by="dev",
            evidence=self.attested(name, right),
        )  # fmt: skip
        self.lands(start(self.rollout.state, who, SPEC, self.rollout.now))

    def sees(self, **changes: Any) -> None:
        self.lands(self.rollout.after(60).sees(**changes))

    def hears(self, report: JudgeReport) -> None:
        said = verdict(report.verdict.value, self.rollout.after(60).now).model_copy(
            update={"report": report.content_digest()}
        )
        place = gitops.verdict_path("m", "prod", report.content_digest())
        files = {str(place): json.dumps(report.to_data())}
        self.lands(self.rollout.sees(verdict=said), files)

    def lands(self, answer: object, files: dict[str, str] | None = None) -> None:
        assert isinstance(answer, Transition), answer
        if self.rollout.state is not answer.state:
            self.rollout._apply(answer)
        done = self.workspace.gitops.commit_transition(
            "m", "prod", taking(self.rollout), render, extra_files=files
        )
        assert done.committed

    def refused(self, name: str, right: int) -> ReleaseOutcome:
        """A release that the evaluation gate kept out: Git knows nothing of it."""
        measured, stable = self.measured(name, right), self.rollout.state.a
        assert stable is not None
        row = {"task": "t", "decision": "fail", "difference": -0.3, "lower": -0.4, "upper": -0.2}
        results = (
            GateResult(gate="scan", decision=Decision.PASS, reasons=("clean",)),
            GateResult(
                gate="evaluation", decision=Decision.FAIL, reasons=("t: worse than the margin",),
                measurements=(row,),
            ),
        )  # fmt: skip
        outcome = ReleaseOutcome(
            model="m", environment="prod", candidate=measured.candidate, recipe=Recipe.NONE,
            gates=GateReport(candidate=measured.candidate.digest, results=results),
            result="refused", phase=Phase.STABLE, reason="evaluation: fail",
            measurements=self.workspace.records.put_document(measured.to_data()),
            compared_with=stable.candidate.digest,
        )  # fmt: skip
        record_outcome(self.workspace.settings, outcome)
        return outcome


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    return World(tmp_path)


def lockgate(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["--workspace", str(Settings().workspace), *arguments], catch_exceptions=False
    )


def explained(name: str) -> tuple[int, dict[str, Any]]:
    done = lockgate("explain", name, "--json")
    said = json.loads(done.stdout)
    assert said["exit_code"] == done.exit_code
    return done.exit_code, said


def test_a_rollback_is_explained_by_the_judges_report_and_what_it_measured(world: World) -> None:
    world.starts("new", right=80)
    world.sees()
    world.hears(JUDGED)
    world.sees()
    code, said = explained("m-new-1")
    assert (code, said["result"]) == (3, "rolled_back")
    (judge,) = said["refusals"]
    assert judge["reasons"] == ["time to first token is 80% longer"]
    assert [f["metric"] for f in judge["figures"]] == ["ttft"]
    assert {"kind": "verdict fail", "digest": JUDGED.content_digest()} in said["evidence"]
    assert any("lockgate lift m --env prod" in step for step in said["next_steps"])
    assert "`lockgate diff m-old-1 m-new-1`: what changed against stable" in said["next_steps"]


def test_what_is_under_way_is_not_called_an_end(world: World) -> None:
    world.starts("new", right=80)
    world.sees()
    code, said = explained("m")
    assert (code, said["result"], said["release"]) == (0, "under_way", "m-new-1")
    assert said["reason"] == "canary, step 1, weight 5"
    assert explained("m-old-1")[1]["result"] == "promoted"


def test_a_refusal_that_git_knows_nothing_of_names_gate_figure_and_evidence(world: World) -> None:
    outcome = world.refused("bad", right=50)
    code, said = explained(outcome.candidate.digest.short)
    assert (code, said["result"]) == (3, "refused")
    by = {refusal["by"]: refusal for refusal in said["refusals"]}
    assert by["evaluation"]["figures"][0]["lower"] == -0.4
    # It was never asked: that is no pass.
    assert by["benchmark"]["decision"] == "no result"
    assert {"kind": "measurements", "digest": outcome.measurements} in said["evidence"]
    assert any("lockgate diff m-old-1" in step for step in said["next_steps"])


def test_evidence_of_a_refused_and_a_promoted_candidate_stands_side_by_side(world: World) -> None:
    refused = world.refused("bad", right=50)
    done = lockgate("diff", "m@stable", refused.candidate.digest.short, "--json")
    found = json.loads(done.stdout)
    (row,) = found["scores"]
    assert (row["a"], row["b"], row["difference"]) == (0.8, 0.5, pytest.approx(-0.3))
    assert found["evidence"][0] is not None and found["evidence"][1] is None
    # The refused one's scans were not kept: nothing is said of findings, rather than that there are none.
    assert found["findings"] is None
    assert {side["what"] for side in found["sides"]} >= {"recipe", "model size"}
    people = lockgate("diff", "m-old-1", refused.candidate.digest.short)
    assert "B - A" in people.stdout and people.exit_code == 0


def test_a_failure_names_its_step_its_log_and_what_to_try_and_is_explained_later(
    world: World,
) -> None:
    spec = ReleaseSpec.model_validate(
        {
            "model": "m", "environment": "prod", "source": "hf://org/name",
            "serving": {"served_model_name": "m"},
            "evaluation": {"tasks": [{"name": "t", "metric": "a", "margin": 0.1, "floor": 0.1}]},
            "benchmark": {"profiles": [{"name": "chat", "requests": 8}]},
        }
    )  # fmt: skip

    @step(name="quantize-model")
    def quantize_model() -> None:
        logging.getLogger("lockgate.release").info("a line of the release")
        raise QuantizationError("the layer does not fit")

    with pytest.raises(QuantizationError), followed(world.workspace.settings, spec):
        quantize_model.fn()
    code, said = explained("m")
    assert (code, said["result"], said["step"]) == (1, "failed", "quantize-model")
    assert said["next_steps"] == [QuantizationError.advice]
    (log,) = [log for log in said["logs"] if log["step"] == "release"]
    text = Path(log["path"]).read_text()
    assert "a line of the release" in text and "Traceback" in text
    printed = lockgate("logs", "m", "--step", "quantize-model", "--tail", "1")
    assert printed.stdout.splitlines()[0] == f"==> {log['path']} <=="
    # The next run that comes to an end takes the failure back.
    with followed(world.workspace.settings, spec):
        pass
    assert explained("m")[1]["release"] == "m-old-1"


def test_logs_are_those_of_the_release_that_was_named(world: World) -> None:
    world.starts("new", right=80)
    occupant = world.rollout.state.b
    assert occupant is not None
    layout = world.workspace.layout
    for who in (occupant.candidate.digest, SUITE):
        directory = layout.logs / f"measure-{who.short}"
        (directory / "evaluation").mkdir(parents=True)
        (directory / "vllm.log").write_text("served\n")
        (directory / "evaluation" / "evaluation.log").write_text("asked\n")
    trace = layout.trace("m", "prod", world.rollout.state.generation)
    trace.parent.mkdir(parents=True)
    trace.write_text("{}\n")
    found = json.loads(lockgate("logs", "m-new-1", "--json").stdout)
    assert [log["step"] for log in found] == ["serve", "evaluate", "canary"]
    assert all(SUITE.short not in log["path"] for log in found)
    with pytest.raises(UsageError, match="steps with logs: serve, evaluate, canary"):
        lockgate("logs", "m-new-1", "--step", "quantize")


def test_a_name_that_says_too_little_or_nothing_is_a_usage_error(world: World) -> None:
    with pytest.raises(UsageError, match="no release is known as nothing") as raised:
        lockgate("explain", "nothing")
    assert raised.value.exit_code == 2 and "m-old-1" in (raised.value.hint or "")
    with pytest.raises(UsageError, match="nothing of other is stable"):
        lockgate("explain", "other@stable")
    with pytest.raises(UsageError, match="no release is known"):
        lockgate("explain", "m", "--env", "staging")
