"""The release flow's own tasks: what is asked for, what stands already, what is committed and how it ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect.cache_policies import NO_CACHE

from lockgate.adapters.scanners import trivy
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates import Decision, GateReport
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import LastRelease, Occupant, Outcome, Phase, ReleaseState
from lockgate.domain.rollout import Transition, Wait, must_leave, start
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import Measurements, PreparedModel, ReleaseOutcome, StageSeconds
from serving.engines.registry import engine
from serving.manifests import pod_template
from tasks import durations
from tasks.bases import rendering_as_described, with_bases
from tasks.driving import apply
from tasks.events import REFUSED, tell
from tasks.retries import TRANSIENT
from tasks.steps import step
from tasks.supply import verify
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")


class Draft(Frozen):
    """A release before its first commit."""

    model: str
    environment: str
    candidate: Candidate
    recipe: Recipe
    stable: Candidate | None
    """What it will be compared with; None for a first release."""
    phase: Phase
    stages: tuple[StageSeconds, ...]
    already_stable: bool = False
    measurements: Digest | None = None
    source: Digest | None = None
    scans: tuple[Digest, ...] = ()

    def with_stages(self, *stages: StageSeconds) -> Draft:
        return self.model_copy(update={"stages": (*self.stages, *stages)})


@step(name="read-policy", cache_policy=NO_CACHE, **TRANSIENT)
def read_policy() -> Policy:
    """The policy at the head of the protected branch."""
    repository = Workspace.current().gitops
    repository.sync()
    return repository.read_policy()


@step(name="describe-candidate", cache_policy=NO_CACHE)
def describe_candidate(spec: ReleaseSpec, prepared: PreparedModel) -> Candidate:
    """Model image, runtime image, serving spec and what the bases make of them; without a runtime in the spec it is the
    embedded cluster's own."""
    workspace = Workspace.current()
    runtime = spec.runtime or workspace.local_runtime(spec.serving.engine)
    candidate = Candidate(model=prepared.model.image, runtime=runtime, serving=spec.serving)
    return with_bases(workspace, spec.model, spec.environment, candidate)


@step(name="open-release", cache_policy=NO_CACHE, **TRANSIENT)
def open_release(
    spec: ReleaseSpec, candidate: Candidate, recipe: Recipe, stages: tuple[StageSeconds, ...]
) -> Draft:
    """Refuse early what could never be committed: a denylisted candidate, or a second release beside one under way.

    Raises:
        Refused: by name of the reason.
    """
    repository = Workspace.current().gitops
    repository.sync()
    state = repository.read_state(spec.model, spec.environment)
    stable = state.occupant(state.stable) if state.stable is not None else None
    draft = Draft(
        model=spec.model, environment=spec.environment, candidate=candidate, recipe=recipe,
        stable=stable.candidate if stable is not None else None, phase=state.phase, stages=stages,
        already_stable=stable is not None and stable.candidate.digest == candidate.digest
        and state.phase in (Phase.STABLE, Phase.BAKING),
    )  # fmt: skip
    if draft.already_stable or _is_under_way(state, candidate):
        return draft
    answer = _start(state, _occupant(state, candidate, candidate.digest), spec)
    if isinstance(answer, Transition):
        logger.info("if its gates pass: %s", answer.subject)
    return draft


@step(name="scan-manifests", cache_policy=NO_CACHE)
def with_manifests_scanned(
    spec: ReleaseSpec, prepared: PreparedModel, candidate: Candidate, policy: Policy
) -> PreparedModel:
    """The prepared model with trivy's evidence on the manifests that the first commit of this release would hold. Where
    that commit is made already there is nothing to scan any more."""
    workspace = Workspace.current()
    files = first_manifests(workspace, spec, candidate)
    if files is None:
        return prepared
    with TemporaryDirectory() as name:
        directory = Path(name)
        for path, text in files.items():
            (directory / Path(path).name).write_text(text)
        log = workspace.layout.logs / f"trivy-manifests-{candidate.digest.short}.log"
        scan = trivy.scan_manifests(directory, policy.images, log=log)
    return prepared.model_copy(update={"scans": (*prepared.scans, scan)})


def first_manifests(
    workspace: Workspace, spec: ReleaseSpec, candidate: Candidate
) -> Mapping[str, str] | None:
    """The manifests of this release's first commit, by path in the repository; None where that is made already. Raises
    `Refused` by name of the reason."""

    def build(newest: ReleaseState) -> Transition | Wait | None:
        if _is_under_way(newest, candidate):
            return None
        return _start(newest, _occupant(newest, candidate, candidate.digest), spec)

    return workspace.gitops.preview(
        spec.model, spec.environment, build, rendering_as_described(workspace, candidate)
    )


@step(name="commit-candidate", cache_policy=NO_CACHE, **TRANSIENT)
def commit_candidate(
    spec: ReleaseSpec,
    candidate: Candidate,
    policy: Policy,
    evidence: Digest,
    requested_by: str | None = None,
) -> ReleaseState:
    """Put the verified candidate into the free slot at weight 0. A second run, by whomever, finds it there."""
    workspace = Workspace.current()
    verify(workspace, candidate, policy)

    def build(newest: ReleaseState) -> Transition | Wait | None:
        if _is_under_way(newest, candidate):
            return None
        occupant = _occupant(newest, candidate, evidence, requested_by)
        return _start(newest, occupant, spec)

    manifests = rendering_as_described(workspace, candidate)
    return apply(workspace, spec.model, spec.environment, build, manifests).state


@step(name="describe-test-pod", cache_policy=NO_CACHE, **TRANSIENT)
def describe_test_pods(
    spec: ReleaseSpec, candidate: Candidate, stable: Candidate | None
) -> dict[str, dict[str, Any]]:
    """The pod template of each one's slot, by candidate digest, from the repository's bases. Empty where tests need no pod."""
    workspace = Workspace.current()
    if workspace.settings.test_server != "kubernetes":
        return {}

    def template(of: Candidate) -> dict[str, Any]:
        return workspace.gitops.look_at_files(
            lambda root: pod_template(
                spec.model, spec.environment, of, root, kubectl=workspace.kubectl
            )
        )

    return {str(of.digest): template(of) for of in (candidate, stable) if of is not None}


def with_measurements(draft: Draft, measured: Measurements, stage: StageSeconds) -> Draft:
    """The draft with what was measured of its candidate, kept as a document: a refusal is in no attestation."""
    kept = Workspace.current().records.put_document(measured.to_data())
    return draft.with_stages(stage).model_copy(update={"measurements": kept})


def with_scans(draft: Draft, prepared: PreparedModel) -> Draft:
    """The draft with what was found in the candidate's files, kept as documents, for the same reason."""
    records = Workspace.current().records
    scans = tuple(records.put_document(scan.to_data()) for scan in prepared.scans)
    return draft.model_copy(update={"source": prepared.source.snapshot, "scans": scans})


def refuse(draft: Draft, gates: GateReport) -> ReleaseOutcome:
    """The outcome of a candidate that its gates keep out. Nothing of it is in Git."""
    gate = next((r.gate for r in gates.results if r.decision is not Decision.PASS), None)
    reason, candidate = "; ".join(gates.refusals), draft.candidate.digest
    tell(
        REFUSED, draft.model, draft.environment, candidate=candidate, gate=gate, reason=reason,
        measurements=draft.measurements,
    )  # fmt: skip
    return _outcome(draft, gates, "refused", reason)


def settle(draft: Draft) -> ReleaseOutcome:
    """The outcome of asking for what is there already."""
    gates = GateReport(candidate=draft.candidate.digest, results=())
    return _outcome(draft, gates, "already_stable", "this candidate is stable already")


def conclude(
    draft: Draft,
    gates: GateReport,
    evidence: Digest,
    committed: ReleaseState,
    ended: ReleaseState,
) -> ReleaseOutcome:
    """The outcome of a release that met traffic, or waits to; `committed` is the state that it began, or went on, with."""
    last, canary = ended.last, committed.canary
    if committed.since is not None and ended.since is not None:
        took = (parse_time(ended.since) - parse_time(committed.since)).total_seconds()
        draft = draft.with_stages(StageSeconds(stage="rollout", seconds=max(0.0, took)))
        if last is not None and last.outcome is Outcome.PROMOTED:
            step = "deploy" if draft.stable is None else "canary"
            durations.remember(
                Workspace.current().records, step, took, work=canary and canary.to_data()
            )
    release = committed.release_under_way
    waits = ended.release_under_way == release and ended.phase in (
        Phase.HELD,
        Phase.AWAITING_APPROVAL,
    )
    if last is None or waits or not _is_of(last, draft, release):
        waiting = f"{ended.phase}" + (f": {ended.held_reason}" if ended.held_reason else "")
        return _outcome(draft, gates, "waiting", waiting, ended, evidence, release)
    return _outcome(draft, gates, last.outcome.value, last.reason, ended, evidence, release)


def _is_of(last: LastRelease, draft: Draft, release: str | None) -> bool:
    """Whether the release that ended last is this one: an earlier attempt at the candidate is another. None: there is none."""
    return last.candidate == draft.candidate.digest and release in (None, last.release)


def _outcome(
    draft: Draft,
    gates: GateReport,
    result: str,
    reason: str,
    ended: ReleaseState | None = None,
    evidence: Digest | None = None,
    release: str | None = None,
) -> ReleaseOutcome:
    last = ended.last if ended is not None else None
    mine = last is not None and _is_of(last, draft, release)
    return ReleaseOutcome.model_validate(
        {
            "model": draft.model,
            "environment": draft.environment,
            "candidate": draft.candidate,
            "recipe": draft.recipe,
            "gates": gates,
            "result": result,
            "phase": ended.phase if ended is not None else draft.phase,
            "outcome": Outcome(last.outcome) if last is not None and mine else None,
            "release": last.release if last is not None and mine else release,
            "leaving": result == "waiting" and ended is not None and must_leave(ended),
            "reason": reason,
            "evidence": evidence,
            "measurements": draft.measurements,
            "compared_with": draft.stable.digest if draft.stable is not None else None,
            "stages": draft.stages,
            "source": draft.source,
            "scans": draft.scans,
        }
    )


def _is_under_way(state: ReleaseState, candidate: Candidate) -> bool:
    slot = state.canary_slot
    occupant = state.occupant(slot) if slot is not None else None
    return occupant is not None and occupant.candidate.digest == candidate.digest


def _occupant(
    state: ReleaseState, candidate: Candidate, evidence: Digest, requested_by: str | None = None
) -> Occupant:
    """Another attempt is another release: the id holds the generation it starts from."""
    release = f"{state.model}-{candidate.digest.short}-{state.generation + 1}"
    return Occupant(
        candidate=candidate, release=release, evidence=evidence, requested_by=requested_by
    )


def _start(state: ReleaseState, occupant: Occupant, spec: ReleaseSpec) -> Transition | Wait:
    one_object = engine(occupant.candidate.serving.engine).one_object
    return start(state, occupant, spec.canary, _now(), one_object=one_object)


def _now() -> datetime:
    return datetime.now(UTC)
