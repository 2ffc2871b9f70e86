"""What travels between the steps of a release: identities only, never weights, local paths or secrets."""

from __future__ import annotations

from typing import Any, Literal

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    EvaluationEvidence,
    ScanEvidence,
)
from lockgate.domain.gates import GateReport
from lockgate.domain.images import ImageRef
from lockgate.domain.quantization import QuantizationReport
from lockgate.domain.release_state import Outcome, Phase
from lockgate.domain.sources import ModelRevision, SourceKind
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.weight_format import WeightFormat


class StepKey(Frozen):
    """Identity of a finished step: what went into it, and the version of the code that did it.

    A changed `version` forgets the results of older code. Paths, times and secrets have no place among the inputs.
    """

    step: str
    version: int
    inputs: dict[str, Any]


class ReleaseRequest(Frozen):
    """Parameter of the release flow."""

    spec: ReleaseSpec
    requested_by: str | None = None
    """Who starts it, and so cannot approve it. A release that nobody is known to have started cannot be approved."""


class CanaryRequest(Frozen):
    """Parameter of the canary and reconcile flows: the state itself is in Git."""

    model: str
    environment: str


class RollbackRequest(CanaryRequest):
    """Parameter of the rollback flow."""

    reason: str
    requested_by: str


class PromoteRequest(CanaryRequest):
    """Parameter of the promote flow: a person lets a held release go on."""

    reason: str
    requested_by: str
    resume: bool = False
    """Only lift the hold: the release is judged on from where it was held."""
    step: int | None = None
    """Step to go to, counted from 1; none promotes."""


class StoredModel(Frozen):
    """A snapshot and the image that carries it."""

    snapshot: Digest
    size: int
    """Bytes of all files."""
    image: ImageRef


class QuantizedModel(Frozen):
    """What the quantize step made of a source, or left as it was."""

    model: StoredModel
    source_format: WeightFormat
    """In which form the source's weights were."""
    report: QuantizationReport | None = None
    """None where nothing was quantized."""
    environment: Digest | None = None
    """Of the Python environment that it was quantized in; none in the records of older versions."""
    container: ImageRef | None = None
    """Image of the container that it was quantized in, where the deployment says so."""


class PreparedModel(Frozen):
    """What the intake steps made of a source."""

    revision: ModelRevision
    recipe: Recipe
    source: StoredModel
    model: StoredModel
    """What is to be released: the source itself, or its quantized form."""
    scans: tuple[ScanEvidence, ...]
    licenses: tuple[str, ...] = ()
    """As the model declares them."""
    architecture: str | None = None
    """As the model declares it."""
    source_format: WeightFormat | None = None
    """In which form the source's weights were; none where its scan kept it from being opened."""
    quantization: QuantizationReport | None = None
    source_kind: SourceKind | None = None
    environment: Digest | None = None
    """Of the Python environment that it was quantized in."""
    container: ImageRef | None = None
    """Image of the container that it was quantized in, where the deployment says so."""


class Measurements(Frozen):
    """Evaluation and benchmark of one candidate."""

    candidate: Candidate
    evaluation: EvaluationEvidence
    benchmark: BenchmarkEvidence


class MeasuredBeside(Frozen):
    """Measurements of a candidate, made with stable's server beside its own where that could be."""

    measurements: Measurements
    comparison: BenchmarkComparison | None = None
    """Both under load in turn; None where they had to be measured apart, or there is no stable."""
    apart: str | None = None
    """Why they had to."""


class StageSeconds(Frozen):
    """How long a stage took. Zero-like for a stage whose result was found from an earlier run (`reused`)."""

    stage: str
    seconds: float
    reused: bool = False


class ReleaseOutcome(Frozen):
    """What became of a release, for the command line, the report and the flow's caller."""

    model: str
    environment: str
    candidate: Candidate
    recipe: Recipe
    gates: GateReport
    result: Literal["promoted", "rolled_back", "aborted", "refused", "waiting", "already_stable"]
    phase: Phase
    outcome: Outcome | None = None
    reason: str
    evidence: Digest | None = None
    measurements: Digest | None = None
    """Document in the store: the candidate's `Measurements`, also where they led to a refusal."""
    compared_with: Digest | None = None
    """Candidate that was stable when the gates spoke."""
    release: str | None = None
    stages: tuple[StageSeconds, ...] = ()
    source: Digest | None = None
    """Of the source's files: their steps' logs are named by it."""
    scans: tuple[Digest, ...] = ()
    """Documents in the store: what the scanners found, also of a candidate that no attestation is about."""
    leaving: bool = False
    """It waits because it cannot be taken back: its traffic should leave it."""

    @property
    def accepted(self) -> bool:
        """Whether the candidate serves, or may yet: refusals and rollbacks are not accepted, had or due."""
        return not self.leaving and self.result in ("promoted", "waiting", "already_stable")
