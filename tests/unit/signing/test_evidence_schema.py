"""Evidence is one schema: what is attested validates for somebody who has the schema and not this code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, ItemScore, TaskScore
from lockgate.domain.evidence_schema import KINDS, json_schema, kind_of, read_evidence

World = Any
COMMITTED = Path(__file__).parents[3] / "docs" / "evidence.schema.json"


def validate(kind: str, document: Any) -> None:
    schema = json.loads(COMMITTED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    one = {**schema["documents"][kind], "$defs": schema["$defs"]}
    jsonschema.Draft202012Validator(one).validate(document)


def test_a_predicate_and_its_documents_are_valid_and_nothing_else_is(world: World) -> None:
    predicate = world.gate().to_data()
    jsonschema.Draft202012Validator(json.loads(COMMITTED.read_text())).validate(predicate)
    item = ItemScore(item="a", score=1.0, cluster="d")
    evidence = EvaluationEvidence(
        subject=Digest.of_bytes(b"c"), suite=Digest.of_bytes(b"s"), harness="h", seconds=1.0,
        tasks=(TaskScore(task="t", metric="m", score=1.0, items=(item,)),),
        samples=Digest.of_bytes(b"answers"),
    )  # fmt: skip
    document = evidence.to_data()
    validate("evaluation", document)
    assert read_evidence("evaluation", document) == evidence
    with pytest.raises(jsonschema.ValidationError):
        validate("benchmark", document)
    with pytest.raises(jsonschema.ValidationError):
        validate("evaluation", {**document, "score": 1})


def test_every_document_of_a_predicate_is_of_a_known_kind(world: World) -> None:
    for reference in world.gate().evidence:
        assert kind_of(reference.kind) in KINDS
    assert kind_of("scan-2-manifests") == "scan"
    with pytest.raises(ValueError, match="horoscope"):
        read_evidence("horoscope", {})


def test_the_schema_that_is_committed_is_that_of_the_types() -> None:
    assert json.loads(COMMITTED.read_text()) == json_schema()
