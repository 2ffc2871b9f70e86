"""The signing step on a store: what it signs, what it says of how the model was made, and that a second run adds nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lockgate.adapters.declarations import Declaration, read_declaration
from lockgate.adapters.oci.images import read_image_manifest
from lockgate.adapters.oci.package import pull_model
from lockgate.adapters.signing import generate_key
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE, SBOM_TYPE, SIGNATURE_TYPE
from lockgate.domain.calibration import CalibrationRecord
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkEvidence,
    EvaluationEvidence,
    Fingerprint,
    ScanEvidence,
    ScannerRun,
    ScannerStatus,
    TaskScore,
)
from lockgate.domain.policy import Policy, ProvenancePolicy, SigningPolicy
from lockgate.domain.quantization import QuantizationReport
from lockgate.domain.sources import ModelRevision, SourceKind
from lockgate.domain.spec import Recipe, ServingSpec
from lockgate.domain.steps import MeasuredBeside, Measurements, PreparedModel
from lockgate.errors import VerificationError
from lockgate.settings import Settings
from tasks.supply import sign_candidate, verifications, verify_candidate
from tasks.workspace import Workspace

World = Any
DIGEST = Digest.of_bytes(b"anything")


def scan(subject: Digest, kind: str) -> ScanEvidence:
    run = ScannerRun(name="structure", version="1", status=ScannerStatus.COMPLETED)
    return ScanEvidence(
        subject=subject, subject_kind=kind, runs=(run,), findings=(), seconds=1.0,
        scanned_at="2026-11-01T00:00:00Z",
    )  # fmt: skip


def measured(candidate: Candidate) -> MeasuredBeside:
    task = TaskScore(task="arithmetic", metric="acc", score=0.5, items=())
    fingerprint = Fingerprint(
        hardware=DIGEST, cpu="cpu", cores=1, engine="vllm", engine_version="0", arguments=()
    )
    return MeasuredBeside(
        measurements=Measurements(
            candidate=candidate,
            evaluation=EvaluationEvidence(
                subject=candidate.digest, suite=DIGEST, harness="lm-eval", tasks=(task,), seconds=1.0
            ),
            benchmark=BenchmarkEvidence(
                subject=candidate.digest, generator="vllm bench", fingerprint=fingerprint,
                profiles=(), seconds=1.0,
            ),
        )
    )  # fmt: skip


@dataclass
class Release:
    """What a release hands to its signing step."""

    workspace: Workspace
    policy: Policy
    prepared: PreparedModel

    @property
    def candidate(self) -> Candidate:
        return Candidate(
            model=self.prepared.model.image, runtime=self.workspace.local_runtime("vllm"),
            serving=ServingSpec(served_model_name="demo"),
        )  # fmt: skip

    def signed(self, world: World) -> dict[str, Any]:
        """Signs; gives the predicates that a verifier finds, by their types."""
        gates, measurements = world.report(self.candidate), measured(self.candidate)
        sign_candidate.fn(self.prepared, self.candidate, self.policy, gates, measurements)
        model, _ = verifications(self.workspace, self.candidate, self.policy)
        assert model.ok, model.failures
        return {s.statement.predicate_type: s.statement.predicate for s in model.statements}


@pytest.fixture
def release(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Of weights that are served as they came."""
    for name, value in {"WORKSPACE": tmp_path / "w", "STORE": f"oci:{world.store.root}"}.items():
        monkeypatch.setenv(f"LOCKGATE_{name}", str(value))
    monkeypatch.setenv("LOCKGATE_BUILDER", "https://ci.example/release")
    workspace = Workspace(Settings())
    generate_key(workspace.layout.private_key, workspace.layout.public_key)
    made = workspace.stored_model(world.image)
    allowed = ProvenancePolicy(sources=("org/*",), builders=("https://ci.example/release",))
    policy = Policy(
        signing=SigningPolicy(
            public_keys=(workspace.layout.public_key.read_text(),), provenance=allowed
        ),
        max_evidence_age_days=36500,
    )
    prepared = PreparedModel(
        revision=ModelRevision(repo="org/demo", commit="a" * 40), recipe=Recipe.NONE, source=made,
        model=made, scans=(scan(made.snapshot, "weights"), scan(made.image.digest, "image")),
        source_kind=SourceKind.HUB,
    )  # fmt: skip
    return Release(workspace, policy, prepared)


def quantized(world: World, release: Release) -> PreparedModel:
    """Of weights that were quantized in a container, with a calibration set."""
    seen = CalibrationRecord(
        digest=Digest.of_bytes(b"texts"), samples=1, max_tokens=64, seed=0, dataset="builtin", tokens=9
    )  # fmt: skip
    report = QuantizationReport(
        recipe="w8a8-gptq", seed=0, calibration=seen, source_bytes=2, weight_bytes=1,
        expected_bytes=1, tensors=1, elements=1, next_token="Paris", generated="Paris.",
        details={"bits": 8}, tools={"llmcompressor": "0.14", "torch": "2.13"}, seconds=1.0,
    )  # fmt: skip
    container = world.candidate.runtime.model_copy(update={"repository": "example.com/quantize"})
    made = release.workspace.stored_model(world.push(b'{"quantized": true}'))
    return release.prepared.model_copy(
        update={
            "recipe": Recipe.W8A8_GPTQ, "model": made, "quantization": report,
            "environment": Digest.of_bytes(b"lock then"), "container": container,
            "licenses": ("apache-2.0",), "architecture": "LlamaForCausalLM",
            "scans": (
                *release.prepared.scans[:1],
                scan(made.snapshot, "weights"),
                scan(made.image.digest, "image"),
            ),
        }
    )  # fmt: skip


def test_what_the_signing_step_writes_satisfies_the_policy_and_is_written_once(
    world: World, release: Release
) -> None:
    workspace, policy, prepared = release.workspace, release.policy, release.prepared
    made, candidate = prepared.model, release.candidate
    gates = world.report(candidate)
    evidence = sign_candidate.fn(prepared, candidate, policy, gates, measured(candidate))
    verify_candidate.fn(candidate, policy)
    model, runtime = verifications(workspace, candidate, policy)
    said = {s.statement.predicate_type: s.statement.predicate for s in model.statements}
    assert set(said) == {SIGNATURE_TYPE, PROVENANCE_TYPE, SBOM_TYPE, GATE_TYPE}
    assert model.gate is not None
    assert model.gate.content_digest() == evidence
    assert model.gate.scanned_at == "2026-11-01T00:00:00.000Z"
    inputs = {d["name"] for d in said[PROVENANCE_TYPE]["buildDefinition"]["resolvedDependencies"]}
    assert inputs == {"source", "source/config.json", "source-image"}
    assert runtime.ok
    referrers = len(world.store.referrers(made.image.repository, made.image.digest))
    assert sign_candidate.fn(prepared, candidate, policy, gates, measured(candidate)) == evidence
    assert len(world.store.referrers(made.image.repository, made.image.digest)) == referrers

    foreign = candidate.model_copy(update={"runtime": world.candidate.runtime})
    report = world.report(foreign)
    with pytest.raises(VerificationError, match="no signature") as caught:
        sign_candidate.fn(prepared, foreign, policy, report, measured(foreign))
    assert "lockgate runtime import" in str(caught.value)


def test_the_signed_provenance_is_what_the_steps_recorded_and_the_sources_very_bytes(
    world: World, release: Release, tmp_path: Path
) -> None:
    prepared = release.prepared = quantized(world, release)
    said = release.signed(world)
    provenance = said[PROVENANCE_TYPE]
    definition, run = provenance["buildDefinition"], provenance["runDetails"]
    inputs = {d["name"]: d for d in definition["resolvedDependencies"]}
    report = prepared.quantization
    assert report is not None
    assert report.calibration is not None

    pull_model(world.store, prepared.source.image, tmp_path / "source")
    files = {
        f"source/{path.relative_to(tmp_path / 'source')}": hashlib.sha256(path.read_bytes())
        for path in (tmp_path / "source").rglob("*")
        if path.is_file()
    }
    digests = {name: d["digest"]["sha256"] for name, d in inputs.items()}
    assert digests == {
        "source": prepared.source.snapshot.hex,
        **{name: digest.hexdigest() for name, digest in files.items()},
        "source-image": prepared.source.image.digest.hex,
        "container/quantize": prepared.container.digest.hex,  # type: ignore[union-attr]  # it has one
        "environment/quantization": Digest.of_bytes(b"lock then").hex,
        "calibration": report.calibration.digest.hex,
    }
    assert inputs["source"]["uri"] == f"pkg:huggingface/org/demo@{'a' * 40}"
    assert inputs["source"]["digest"]["gitCommit"] == prepared.revision.commit
    assert definition["externalParameters"]["quantization"] == "w8a8-gptq"
    parameters = definition["internalParameters"]
    assert parameters["snapshot"] == prepared.model.snapshot
    assert parameters["quantization"]["report"] == report.to_data()
    assert run["builder"]["id"] == "https://ci.example/release"
    assert run["builder"]["version"].items() >= report.tools.items()
    assert set(run["builder"]["version"]) - set(report.tools) == {"lockgate"}
    scans = {entry["digest"]["sha256"] for entry in run["byproducts"]}
    assert scans == {scan.content_digest().hex for scan in prepared.scans}
    gate = said[GATE_TYPE]
    assert scans < {Digest(entry["digest"]).hex for entry in gate["evidence"]}
    for entry in gate["evidence"]:
        assert release.workspace.records.get_document(Digest(entry["digest"]))


def test_the_signed_bill_of_materials_is_valid_and_names_license_architecture_ancestor_and_scores(
    world: World, release: Release
) -> None:
    release.prepared = quantized(world, release)
    bom = release.signed(world)[SBOM_TYPE]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom)) is None
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": release.candidate.model.digest.hex}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    card = model["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    (score,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert score == {"type": "arithmetic/acc", "value": "0.5"}
    (ancestor,) = model["pedigree"]["ancestors"]
    assert ancestor["purl"] == f"pkg:huggingface/org/demo@{'a' * 40}"
    assert [file["name"] for file in bom["components"]] == ["config.json"]


OPENED: list[str] | None = None


def _note_what_is_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(str(arguments[0]))


def test_signing_opens_no_model_file_and_no_layer_that_holds_one(
    world: World, release: Release, tmp_path: Path
) -> None:
    """Seen by the interpreter itself, and shown by layers of the right size with nothing of the model in them."""
    global OPENED
    release.prepared = quantized(world, release)
    layers = set()
    for image in (release.prepared.source.image, release.prepared.model.image):
        _, *holding = read_image_manifest(world.store, image).layers  # the first lists the files
        layers |= {world.store.blob_path(layer.digest) for layer in holding}
    for path in layers:
        path.write_bytes(b"x" * path.stat().st_size)
    candidate = release.candidate
    sys.addaudithook(_note_what_is_opened)
    OPENED = []
    try:
        said = release.signed(world)
        opened, OPENED = set(OPENED), None
    finally:
        OPENED = None
    assert set(said) == {SIGNATURE_TYPE, PROVENANCE_TYPE, SBOM_TYPE, GATE_TYPE}
    assert any(str(world.store.root) in name for name in opened), "the hook sees the store"
    assert not opened & {str(path) for path in layers}
    assert not any(name.endswith("config.json") for name in opened)
    assert said[GATE_TYPE]["candidate"] == candidate.digest


def test_what_a_model_says_of_itself_is_read_from_card_config_and_license_text(
    tmp_path: Path,
) -> None:
    assert read_declaration(tmp_path) == Declaration((), None)
    (tmp_path / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert read_declaration(tmp_path) == Declaration(("apache-2.0",), "LlamaForCausalLM")
    (tmp_path / "README.md").write_text("---\nlicense: [MIT, mit, llama3.2]\n---\n")
    assert read_declaration(tmp_path).licenses == ("mit", "llama3.2")
    for malformed in (
        "[" * 100_000,
        "[]",
        '{"architectures": 3}',
        '{"architectures": [{}]}',
        "\x00",
    ):
        (tmp_path / "config.json").write_text(malformed)
        assert read_declaration(tmp_path) == Declaration(("mit", "llama3.2"), None)
