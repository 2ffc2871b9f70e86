"""What `release` and `plan` are given besides a spec."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lockgate.cli.given_specs import given_spec
from lockgate.domain.spec import Recipe
from lockgate.errors import UsageError


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    directory = tmp_path / "My Fine-Tune.v2"
    directory.mkdir()
    return directory


def test_a_directory_becomes_a_spec_that_its_owner_may_edit(model: Path, tmp_path: Path) -> None:
    spec = given_spec(model, "int8", None)
    assert (spec.model, spec.source) == ("my-fine-tune-v2", f"dir:{model}")
    assert spec.quantization is Recipe.W8A8_RTN
    # A first release passes no gate without a floor for every task and an absolute limit of speed.
    assert all(task.floor is not None for task in spec.evaluation.tasks)
    assert spec.benchmark.max_ttft_p50_ms is not None
    written = tmp_path / "workspace" / "specs" / "my-fine-tune-v2.yaml"
    data = yaml.safe_load(written.read_text())
    assert data["quantization"] == "none"
    written.write_text(yaml.safe_dump({**data, "environment": "staging"}))
    assert given_spec(model, None, None).environment == "staging"
    assert given_spec(model, None, "production").environment == "production"
    assert given_spec(written, None, None) == given_spec(model, None, None)


def test_the_spec_of_one_directory_is_not_taken_for_another_of_the_same_name(
    model: Path, tmp_path: Path
) -> None:
    given_spec(model, None, None)
    other = tmp_path / "elsewhere" / model.name
    other.mkdir(parents=True)
    with pytest.raises(UsageError, match="is the spec of dir:"):
        given_spec(other, None, None)


@pytest.mark.parametrize(("quantize", "target"), [("int3", None), (None, "Not A Label")])
def test_a_recipe_or_environment_that_cannot_be_is_a_usage_error(
    model: Path, quantize: str | None, target: str | None
) -> None:
    with pytest.raises(UsageError):
        given_spec(model, quantize, target)
