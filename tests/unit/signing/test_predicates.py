"""Predicates are what their specifications say, read by other people's libraries."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2

from lockgate.domain.attestation import (
    PROVENANCE_TYPE,
    GatePredicate,
    Origin,
    origin_of,
    parse_statement,
    statement,
)
from lockgate.domain.bill_of_materials import ml_bom
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, TaskScore
from lockgate.domain.gates.base import Decision
from lockgate.domain.policy import BUILDER
from lockgate.domain.sources import ModelRevision, Snapshot, SnapshotFile
from lockgate.domain.spec import Recipe

World = Any
TIME = "2026-01-02T03:04:05Z"


def test_provenance_is_slsa_v1_in_an_in_toto_statement(world: World) -> None:
    body = statement(world.image, PROVENANCE_TYPE, world.provenance())
    read = json_format.Parse(body, statement_pb2.Statement())
    assert [s.digest["sha256"] for s in read.subject] == [world.image.digest.hex]
    predicate = json_format.ParseDict(json.loads(body)["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.resolved_dependencies[0].digest["gitCommit"] == "0" * 40
    assert predicate.run_details.metadata.invocation_id == "release-1"
    assert origin_of(parse_statement(body).predicate) == Origin(BUILDER, "org/demo")
    with pytest.raises(ValueError, match="runDetails"):
        origin_of({"buildDefinition": {}})


def test_the_bill_of_materials_is_valid_cyclonedx_and_the_same_every_time(world: World) -> None:
    digest = Digest.of_bytes(b"{}")
    evaluation = EvaluationEvidence(
        subject=world.candidate.digest,
        suite=digest,
        harness="lm-eval 0.4",
        tasks=(TaskScore(task="arithmetic", metric="acc,none", score=0.5, items=()),),
        seconds=1.0,
    )
    boms = [
        ml_bom(
            image=world.image,
            name="demo",
            revision=ModelRevision(repo="org/demo", commit="a" * 40),
            snapshot=Snapshot.of([SnapshotFile(path="config.json", size=2, digest=digest)]),
            recipe=Recipe.W8A8_RTN,
            licenses=("apache-2.0", "llama3.2"),
            architecture="LlamaForCausalLM",
            evaluation=evaluation,
            source_weights="gptq (int4, groups of 128)",
            timestamp=TIME,
            version="0.1.0",
        )
        for _ in range(2)
    ]
    assert boms[0] == boms[1]
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(boms[0]))
    assert problem is None
    properties = boms[0]["metadata"]["component"]["properties"]
    weights = {"name": "lockgate:source-weights", "value": "gptq (int4, groups of 128)"}
    assert weights in properties
    licenses = boms[0]["metadata"]["component"]["licenses"]
    assert licenses == [{"license": {"id": "Apache-2.0"}}, {"license": {"name": "llama3.2"}}]


@pytest.mark.parametrize(
    "change",
    [
        {"result": "FAILED"},
        {"candidate": Digest.of_bytes(b"other")},
        {"serving": {"served_model_name": "other"}},
        {"runtime": f"lockgate.local/runtime@{Digest.of_bytes(b'other')}"},
        {"decided_at": "2026-01-02T03:04:05"},
        {"evidence": []},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_gate_predicate_that_contradicts_itself_cannot_be_read(
    world: World, change: dict[str, Any]
) -> None:
    sound = world.gate().to_data()
    assert GatePredicate.model_validate(sound) == world.gate()
    with pytest.raises(ValueError):
        GatePredicate.model_validate({**sound, **change})


def test_the_result_of_a_gate_predicate_follows_from_the_report(world: World) -> None:
    assert world.gate().result == "PASSED"
    failed = world.gate(report=world.report(scan=Decision.INSUFFICIENT_DATA))
    assert failed.result == "FAILED"
