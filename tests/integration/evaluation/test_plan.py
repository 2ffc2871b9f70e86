"""`lockgate plan` in a workspace of its own: what it finds, what it would do, and how long that would take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockgate.adapters.git import EMBEDDED
from lockgate.domain.spec import ReleaseSpec
from lockgate.errors import EXIT_USAGE
from lockgate.settings import Settings
from tasks import durations
from tasks.planning import Plan, PlannedStep, plan_release
from tasks.workspace import Workspace, initialise
from tests.unit.sizing.known_models import KNOWN

SPEC = {
    "model": "smol",
    "serving": {"served_model_name": "smol"},
    "quantization": "none",
    "evaluation": {
        "tasks": [{"name": "lockgate_numbers", "metric": "exact_match,strip", "margin": 0.1}],
        "limit": 100,
    },
    "benchmark": {"profiles": [{"name": "single", "requests": 10, "output_tokens": 50}]},
}


def test_a_plan_names_the_seconds_of_every_step_and_what_they_are_taken_from(
    tmp_path: Path, serving_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    spec = ReleaseSpec.model_validate({**SPEC, "source": f"dir:{model}"})
    initialise(Settings(), layout=EMBEDDED, demo=True)

    def steps() -> dict[str, PlannedStep]:
        return {step.step: step for step in plan_release(spec).steps}

    first = steps()
    assert first["quantize"].predicted is None
    assert first["evaluate"].predicted is not None
    assert first["evaluate"].predicted.seconds == 10
    assert "no earlier run: 0.1 s for each of 100 items" in first["evaluate"].predicted.basis
    assert first["benchmark"].predicted is not None
    assert first["benchmark"].predicted.seconds == 500 / 25
    workspace = Workspace.current()
    hardware = workspace.candidate_server().hardware(spec.serving)
    for seconds in (30.0, 31.0, 500.0):
        durations.remember(workspace.records, "serve", seconds, hardware=hardware)
    plan = plan_release(spec)
    assert steps()["serve"].predicted is not None
    assert "serve      to do          31 s" in plan.as_text()
    assert "median of 3 earlier runs" in plan.as_text()
    expected = sum(s.predicted.seconds for s in plan.steps if s.predicted is not None)
    assert plan.as_text().endswith(f"together: {expected:.0f} s")


def test_a_plan_shows_the_memory_line_by_line_and_what_would_make_a_model_fit(
    tmp_path: Path, serving_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(KNOWN["Llama-3.1-70B"].config))
    initialise(Settings(), layout=EMBEDDED, demo=True)

    def plan(**serving: object) -> Plan:
        return plan_release(
            ReleaseSpec.model_validate(
                {
                    **SPEC, "source": f"dir:{model}",
                    "hardware": {"device": "cuda", "accelerator": "h100-80gb", "gpus_per_node": 2},
                    "serving": {"served_model_name": "smol", **serving},
                }
            )
        )  # fmt: skip

    two = {"resources": {"gpu": 2}, "parallel": {"tensor": 2}}
    fits = plan(**two, max_model_len=16384)
    assert "size" not in {step.step for step in fits.steps}
    assert (
        "  - 65.71 GiB weights: 131.42 GiB / 2 devices (70.554 billion parameters)"
        in fits.as_text()
    )
    refused = plan(**two, max_model_len=131072)
    assert refused.exit_code == EXIT_USAGE
    text = refused.as_text()
    assert "the model does not fit on 2 h100-80gb" in text
    assert "4 h100-80gb in one node" in text
