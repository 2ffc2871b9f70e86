"""Step flows: the heavy or privileged parts of a release, each deployable with resources and an identity of its own.

In Prefect a task runs where its flow runs. So what needs a GPU, touches untrusted bytes or holds the signing key is a flow:
called directly on a laptop, and by `run_deployment` on its own work pool where `LOCKGATE_STEP_RUNNER=deployment`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from pydantic import Field

from flows.calling import run_step
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates import GateReport
from lockgate.domain.policy import Policy
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import (
    MeasuredBeside,
    PreparedModel,
    QuantizedModel,
    StageSeconds,
    StoredModel,
)
from tasks import artifacts, intake, measurement, supply
from tasks.recorded import handed_over


class PrepareRequest(Frozen):
    spec: ReleaseSpec
    policy: Policy


class PrepareResult(Frozen):
    prepared: PreparedModel
    stages: tuple[StageSeconds, ...]


class QuantizeRequest(Frozen):
    source: StoredModel
    spec: ReleaseSpec


class QuantizeResult(Frozen):
    quantized: QuantizedModel
    stage: StageSeconds


class MeasureRequest(Frozen):
    candidate: Candidate
    spec: ReleaseSpec
    stable: Candidate | None = None
    """To be put under load in turn with the candidate."""
    pod_templates: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Of the slots, by candidate digest, where candidates are served for tests in a cluster: this step does not read Git."""


class MeasureResult(Frozen):
    measured: MeasuredBeside
    stage: StageSeconds


class SignRequest(Frozen):
    prepared: PreparedModel
    candidate: Candidate
    policy: Policy
    gates: GateReport
    measured: MeasuredBeside


class SignResult(Frozen):
    evidence: Digest
    """Digest of the gate predicate that was signed."""


@flow(name="quantize", flow_run_name="quantize-{request.spec.model}")
def quantize(request: QuantizeRequest) -> QuantizeResult:
    """Quantize what is fetched and scanned: the part of the preparation that wants the resources of a GPU."""
    made, stage = intake.quantize_model(request.source, request.spec)
    return handed_over("quantize", request, QuantizeResult(quantized=made, stage=stage))


@flow(name="prepare", flow_run_name="prepare-{request.spec.model}")
def prepare(request: PrepareRequest) -> PrepareResult:
    """Resolve, check the recipe, fetch, scan, quantize, scan again, package. Weights that fail their scan are not opened any further."""
    spec, policy = request.spec, request.policy
    revision = intake.resolve_source(spec.source)
    intake.check_recipe(spec, revision)
    source, fetched = intake.fetch_model(spec.source, revision, spec.model)
    scan, scanned = intake.scan_weights(source, policy)
    asked = intake.ask_source(spec.source, revision, source, policy)
    scans = [scan] if asked is None else [scan, asked]
    if not intake.is_clean(scans, policy):
        prepared = intake.describe(revision, spec, source, None, scans)
        return handed_over(
            "prepare", request, PrepareResult(prepared=prepared, stages=(fetched, scanned))
        )
    made, quantized = _quantized(source, spec)
    # Both read what is stored and nothing is measured meanwhile, so they may share the machine.
    scanning = intake.scan_weights.submit(made.model, policy)
    image_scan = intake.scan_image(made.model, policy.images)
    rescan, rescanned = scanning.result()
    prepared = intake.describe(revision, spec, source, made, [*scans, rescan, image_scan])
    stages = (fetched, scanned, quantized, rescanned)
    artifacts.publish_preparation(prepared, stages)
    return handed_over("prepare", request, PrepareResult(prepared=prepared, stages=stages))


def _quantized(source: StoredModel, spec: ReleaseSpec) -> tuple[QuantizedModel, StageSeconds]:
    """Weights that stay as they are need no machine of their own."""
    if spec.quantization is Recipe.NONE:
        return intake.quantize_model(source, spec)
    result = run_step(quantize, QuantizeRequest(source=source, spec=spec), QuantizeResult)
    return result.quantized, result.stage


@flow(name="measure", flow_run_name="measure-{request.spec.model}")
def measure(request: MeasureRequest) -> MeasureResult:
    """Serve, evaluate, benchmark: in turn with stable where there is one."""
    measured, stage = measurement.measure_candidate(
        request.candidate,
        request.spec.evaluation,
        request.spec.benchmark,
        request.stable,
        request.pod_templates,
    )
    return handed_over("measure", request, MeasureResult(measured=measured, stage=stage))


@flow(name="sign", flow_run_name="sign-{request.candidate.serving.served_model_name}")
def sign(request: SignRequest) -> SignResult:
    """Sign and attest, then verify what was written."""
    evidence = supply.sign_candidate(
        request.prepared, request.candidate, request.policy, request.gates, request.measured
    )
    supply.verify_candidate(request.candidate, request.policy)
    return handed_over("sign", request, SignResult(evidence=evidence))
