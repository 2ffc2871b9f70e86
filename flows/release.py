"""The main flow: one model from its source to a promoted canary, or to a refusal that says why."""

from __future__ import annotations

from prefect import flow

from flows.calling import run_step
from flows.canary import see_through
from flows.steps import (
    MeasureRequest,
    MeasureResult,
    PrepareRequest,
    PrepareResult,
    SignRequest,
    SignResult,
    measure,
    prepare,
    sign,
)  # fmt: skip
from lockgate.domain.steps import CanaryRequest, ReleaseOutcome, ReleaseRequest
from tasks import engine_limits, releasing, runtimes, supply, turns


@flow(
    name="release",
    flow_run_name="release-{request.spec.model}-{request.spec.environment}",
    validate_parameters=True,
)
def release(request: ReleaseRequest) -> ReleaseOutcome:
    """Prepare, measure, gate, sign, commit, raise. Any finished part is found again when it is run a second time.

    A refusal by a gate or a verdict is an outcome, not an exception: the flow completes and says so. Exceptions are for
    what could not be done.
    """
    spec = request.spec
    turns.look_beside(spec)
    policy = releasing.read_policy()
    runtimes.check_runtime(spec, policy)
    engine_limits.check_engine(spec)
    made = run_step(prepare, PrepareRequest(spec=spec, policy=policy), PrepareResult)
    prepared = made.prepared
    candidate = releasing.describe_candidate(spec, prepared)
    draft = releasing.open_release(spec, candidate, prepared.recipe, made.stages)
    if draft.already_stable:
        return releasing.settle(draft)
    screened = supply.decide_gates(spec, policy, candidate, prepared)
    draft = releasing.with_scans(draft, prepared)
    if not supply.may_be_served(screened):
        return releasing.refuse(draft, screened)
    prepared = releasing.with_manifests_scanned(spec, prepared, candidate, policy)
    draft = releasing.with_scans(draft, prepared)
    templates = releasing.describe_test_pods(spec, candidate, draft.stable)
    measured = run_step(
        measure,
        MeasureRequest(
            candidate=candidate, spec=spec, stable=draft.stable, pod_templates=templates
        ),
        MeasureResult,
    )
    draft = releasing.with_measurements(draft, measured.measured.measurements, measured.stage)
    baseline = None
    if draft.stable is not None:
        baseline = run_step(
            measure,
            MeasureRequest(candidate=draft.stable, spec=spec, pod_templates=templates),
            MeasureResult,
        )
    gates = supply.decide_gates(
        spec, policy, candidate, prepared, measured.measured,
        baseline.measured.measurements if baseline else None,
    )  # fmt: skip
    if not gates.passed:
        return releasing.refuse(draft, gates)
    signed = run_step(
        sign,
        SignRequest(
            prepared=prepared, candidate=candidate, policy=policy, gates=gates,
            measured=measured.measured,
        ),
        SignResult,
    )  # fmt: skip
    committed = releasing.commit_candidate(
        spec, candidate, policy, signed.evidence, request.requested_by
    )
    ended = see_through(CanaryRequest(model=spec.model, environment=spec.environment))
    return releasing.conclude(draft, gates, signed.evidence, committed, ended)
