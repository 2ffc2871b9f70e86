"""A step may be judged by margins of its own; the rest is the release's, and so is alpha."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from lockgate.cli import main
from lockgate.domain.judge import Criticality
from lockgate.domain.judge.config import MetricKind
from lockgate.domain.release_state import ReleaseState, Restoring
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.spec import CanarySpec, CanaryStep, JudgeMargins, StepMargins
from lockgate.settings import WorkspaceLayout
from tasks import step_metrics
from tasks.judging import judge_config, step_alpha
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.test_watching import watched
from tests.unit.rollout.world import SPEC, in_bake, in_canary

STEPS = (
    CanaryStep(weight=25, min_seconds=30, margins=StepMargins(errors=0.2), min_requests=7),
    CanaryStep(weight=50, min_seconds=30),
)
OWN = SPEC.model_copy(update={"steps": STEPS, "margins": JudgeMargins(latency=0.3, errors=0.01)})


def test_a_step_takes_its_own_margins_and_the_releases_for_the_rest() -> None:
    first, second = (judge_config(in_canary(OWN, steps_passed=n).state) for n in (0, 1))
    assert [c.metrics["gateway_errors"].margin for c in (first, second)] == [0.2, 0.01]
    assert [c.metrics["ttft"].margin for c in (first, second)] == [0.3, 0.3]
    assert [c.minimum_requests for c in (first, second)] == [7, 20]
    assert first.metrics["quality_probe"].margin == second.metrics["quality_probe"].margin == 0.05
    baked = judge_config(in_bake().state.model_copy(update={"canary": OWN}))
    assert baked.metrics["gateway_errors"].margin == 0.01


def test_margins_of_a_step_change_no_share_of_alpha() -> None:
    alike = OWN.model_copy(update={"steps": tuple(s.model_copy(update={"margins": StepMargins()}) for s in STEPS)})  # fmt: skip
    assert step_alpha(OWN) == step_alpha(alike)
    shares = [judge_config(in_canary(OWN, steps_passed=n).state).alpha for n in (0, 1)]
    assert sum(shares) + judge_config(in_bake().state.model_copy(update={"canary": OWN})).alpha \
        == pytest.approx(OWN.alpha)  # fmt: skip


def test_a_document_has_no_key_that_is_not_used_so_that_a_process_of_before_reads_it() -> None:
    """Keys that came later. Who does not know one refuses the whole state, and another spec is another track's key."""

    def keys(value: Any) -> set[str]:
        parts = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        return set(value if isinstance(value, dict) else ()).union(*map(keys, parts))

    plain = in_canary(SPEC).state
    of_steps = keys([step.to_data() for step in SPEC.steps])
    assert {"steps", "weight", "min_requests"} <= keys(plain.to_data())
    assert "restoring" not in keys(plain.to_data()) and "margins" not in of_steps
    assert ReleaseState.model_validate(plain.to_data()) == plain
    own = in_canary(OWN).state.model_copy(update={"restoring": Restoring.DUE})
    told = own.to_data()
    assert told["restoring"] == "due"
    assert [step.get("margins", {}).get("errors") for step in told["canary"]["steps"]] == [
        0.2,
        None,
    ]
    assert ReleaseState.model_validate_json(json.dumps(told)) == own


@pytest.mark.parametrize("margins", [{"errors": 1.0}, {"latency": 0}, {"ttft": 0.1}])
def test_a_margin_that_is_none_is_refused(margins: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CanarySpec.model_validate({"steps": [{"weight": 50, "margins": margins}]})


def test_the_same_trace_is_within_one_steps_margin_and_beyond_anothers_and_the_command_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of all requests fails: fewer than the first step's margin, more than the second's."""

    def judged(state: ReleaseState, name: str) -> str:
        assert state.since is not None
        start = parse_time(state.since).timestamp()
        pairs = zip(
            scrapes("baseline", start, 160), scrapes("canary", start, 160, errors=0.1), strict=True
        )
        seen = [s for pair in pairs for s in pair]
        monkeypatch.setattr(step_metrics.metrics, "scrape", lambda *_, **__: seen)
        clock = SimpleNamespace(time=lambda: start + 159, monotonic=time.monotonic)
        monkeypatch.setattr(step_metrics, "time", clock)
        verdict = watched(tmp_path / name, state).look().verdict
        assert verdict is not None
        layout = WorkspaceLayout(tmp_path / name)
        of_step = (state.model, state.environment, state.began)
        monkeypatch.setattr(
            sys, "argv",
            ["lockgate", "judge", "--config", str(layout.judge_config(*of_step)), str(layout.trace(*of_step))],
        )  # fmt: skip
        with pytest.raises(SystemExit):
            main()
        said = json.loads(capsys.readouterr().out)
        assert said["verdict"] == verdict.verdict
        return verdict.verdict

    wide = STEPS[0].model_copy(update={"weight": 50, "judge_latency": False})
    narrow = wide.model_copy(update={"margins": StepMargins()})
    words = [
        judged(in_canary(OWN.model_copy(update={"steps": (step,)})).state, name)
        for name, step in (("wide", wide), ("narrow", narrow))
    ]
    assert words == ["pass", "fail"]


def test_in_a_step_by_header_nothing_but_a_crash_fails_a_canary() -> None:
    """Who asks by header asks for other things than everybody."""
    header = STEPS[0].model_copy(update={"traffic": "header", "weight": 0})
    state = in_canary(OWN.model_copy(update={"steps": (header, *STEPS)})).state
    metrics = judge_config(state).metrics
    assert {m.kind for m in metrics.values() if m.criticality is not Criticality.ADVISORY} == {
        MetricKind.CRASH
    }
