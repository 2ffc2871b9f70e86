"""Finished quantizations are found by what decided their bytes, and by nothing else; provenance says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockgate.domain.attestation import Origin, origin_of
from lockgate.domain.calibration import CalibrationRecord
from lockgate.domain.digests import Digest
from lockgate.domain.quantization import QuantizationReport
from lockgate.domain.sources import ModelRevision, Snapshot, SnapshotFile, SourceKind
from lockgate.domain.spec import CalibrationSpec, Recipe
from lockgate.domain.steps import PreparedModel, StoredModel
from lockgate.domain.weight_format import recognise
from lockgate.settings import Settings
from tasks.intake import calibration_for, quantize_key
from tasks.supply import provenance_of
from tasks.workspace import Workspace

LINE = '{"text": "Snow lay on the roofs of the harbor."}\n'
SNAPSHOT = Digest.of_bytes(b"snapshot")
SOURCE = StoredModel.model_validate(
    {"snapshot": SNAPSHOT, "size": 3, "image": f"lockgate.local/models/m@{Digest.of_bytes(b'i')}"}
)


def key(place: Path, recipe: Recipe = Recipe.W8A8_GPTQ, **calibration: Any) -> Digest:
    spec = CalibrationSpec(**{"dataset": str(place), **calibration})
    workspace = Workspace(Settings(workspace=Path("anywhere")))
    drawn = calibration_for(recipe, spec)
    return quantize_key(workspace, SOURCE, recipe, drawn, "m").content_digest()


def test_a_moved_calibration_set_finds_the_same_result_and_a_changed_one_does_not(
    tmp_path: Path,
) -> None:
    here, there, other = (tmp_path / name for name in ("here.jsonl", "there.jsonl", "other.jsonl"))
    here.write_text(LINE)
    there.write_text(LINE)
    other.write_text(LINE.replace("Snow", "Rain"))
    assert key(here) == key(there)
    assert key(here) != key(other)


@pytest.mark.parametrize("change", [{"samples": 7}, {"max_tokens": 64}, {"seed": 1}, {}], ids=str)
def test_what_is_shown_counts_for_a_calibrated_recipe_only(change: dict[str, Any]) -> None:
    place = Path("builtin")
    assert (key(place, **change) == key(place)) == (not change)
    assert key(place, Recipe.W8A8_RTN, **change) == key(place, Recipe.W8A8_RTN)


def test_every_recipe_has_a_key_of_its_own() -> None:
    recipes = [recipe for recipe in Recipe if recipe is not Recipe.NONE]
    assert len({key(Path("builtin"), recipe) for recipe in recipes}) == len(recipes)


def test_provenance_names_the_calibration_set_by_digest_and_what_the_source_was() -> None:
    seen = CalibrationRecord(
        digest=Digest.of_bytes(b"texts"), samples=1, max_tokens=64, seed=0, dataset="builtin", tokens=9
    )  # fmt: skip
    report = QuantizationReport(
        recipe="w8a8-gptq", seed=0, calibration=seen, source_bytes=2, weight_bytes=1, expected_bytes=1,
        tensors=1, elements=1, next_token="Paris", generated="Paris.", details={}, tools={"llmcompressor": "0.14"}, seconds=1.0,
    )  # fmt: skip
    prepared = PreparedModel(
        revision=ModelRevision(repo="org/m", commit="a" * 40), recipe=Recipe.W8A8_GPTQ, source=SOURCE,
        model=SOURCE, scans=(), source_format=recognise({"config.json": b"{}"}, ("config.json",)),
        quantization=report, source_kind=SourceKind.HUB,
    )  # fmt: skip
    config = SnapshotFile(path="config.json", size=2, digest=Digest.of_bytes(b"{}"))
    predicate = provenance_of(prepared, Snapshot.of([config]), "candidate:x", "https://ci.example")
    assert origin_of(predicate) == Origin("https://ci.example", "org/m")
    assert predicate["runDetails"]["builder"]["version"]["llmcompressor"] == "0.14"
    definition = predicate["buildDefinition"]
    inputs = {entry["name"]: entry for entry in definition["resolvedDependencies"]}
    assert set(inputs) == {
        "source", "source/config.json", "source-image", "environment/quantization", "calibration"
    }  # fmt: skip
    assert inputs["calibration"]["digest"] == {"sha256": seen.digest.hex}
    assert inputs["source/config.json"]["digest"] == {"sha256": config.digest.hex}
    assert inputs["source"]["digest"]["gitCommit"] == "a" * 40
    parameters = definition["internalParameters"]["quantization"]
    assert parameters["sourceWeights"]["kind"] == "plain"
    assert parameters["report"]["calibration"]["tokens"] == 9
