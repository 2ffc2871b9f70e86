"""What became of a release and why, from what is stored already: Git, the store's documents, this workspace. Nothing is run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError

from lockgate.domain.explanation import (
    EvidenceDigest,
    Explanation,
    Refusal,
    Result,
    after_refusal,
    refusal_by_judge,
    refusals_of,
)
from lockgate.domain.gitops import verdict_path
from lockgate.domain.judge import JudgeReport
from lockgate.domain.release_state import Outcome, Phase, ReleaseState, VerdictRef
from lockgate.domain.rescan import RescanRecord
from lockgate.errors import EXIT_REFUSED, LockgateError
from tasks.approving import pending_request
from tasks.known_releases import KnownRelease, ReleaseIndex
from tasks.release_logs import logs_of
from tasks.rescanning import last_rescan
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.explain")


def explain(workspace: Workspace, name: str, environment: str | None = None) -> Explanation:
    """The release that `name` names, as `ReleaseIndex.find` takes it. Raises `UsageError` where there is none."""
    index = ReleaseIndex(workspace, environment)
    known = index.find(name)
    state = index.last_state(known)
    if state is not None:
        said = _Committed(index, known, state).said()
    elif known.outcome is not None:
        said = _refused(index, known)
    else:
        said = _failed(known)
    return said.model_copy(update={"logs": logs_of(index, known)})


def _failed(known: KnownRelease) -> Explanation:
    failure = known.failure
    assert failure is not None
    result: Result = "refused" if failure.exit_code == EXIT_REFUSED else "failed"
    reason = f"{failure.error}: {failure.message}"
    return Explanation(
        release=known.name, model=known.model, environment=known.environment, result=result,
        reason=reason, step=failure.step, next_steps=(failure.next_step,),
    )  # fmt: skip


def _refused(index: ReleaseIndex, known: KnownRelease) -> Explanation:
    outcome = known.outcome
    assert outcome is not None
    refusals = refusals_of(outcome.gates)
    evidence = [EvidenceDigest(kind="scan", digest=scan) for scan in outcome.scans]
    if outcome.measurements is not None:
        evidence.append(EvidenceDigest(kind="measurements", digest=outcome.measurements))
    before = index.before(known)
    return Explanation(
        release=known.name, model=known.model, environment=known.environment,
        candidate=known.candidate, result="refused", reason=outcome.reason, refusals=refusals,
        evidence=tuple(evidence),
        next_steps=tuple(after_refusal(refusals, before.name if before else None, known.name)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Committed:
    """A release that Git knows, in the state that its last commit left."""

    index: ReleaseIndex
    known: KnownRelease
    state: ReleaseState

    def said(self) -> Explanation:
        known, state = self.known, self.state
        result, reason = self.result()
        occupant = self.index.occupant(known)
        refusals = tuple(self.refusals())
        before = self.index.before(known)
        steps = after_refusal(refusals, before.name if before else None, known.name)
        return Explanation(
            release=known.name, model=known.model, environment=known.environment,
            candidate=known.candidate, result=result, reason=reason, refusals=refusals,
            step="canary" if state.phase is Phase.HELD else None,
            requested_by=occupant.requested_by if occupant is not None else None,
            evidence=tuple(self.evidence()), next_steps=(*self.next_steps(result), *steps),
        )  # fmt: skip

    def result(self) -> tuple[Result, str]:
        last, state = self.state.last, self.state
        under_way = state.release_under_way
        if state.phase is Phase.HELD and under_way is not None and under_way == self.known.release:
            return "waiting", f"held: {state.held_reason}"
        if last is not None and last.release == self.known.release:
            results: dict[Outcome, Result] = {
                Outcome.PROMOTED: "promoted",
                Outcome.ROLLED_BACK: "rolled_back",
                Outcome.ABORTED: "aborted",
            }
            return results[last.outcome], last.reason
        if state.phase is Phase.HELD:
            return "waiting", f"held: {state.held_reason}"
        if state.phase is Phase.AWAITING_APPROVAL:
            return "waiting", "the next raise needs an approval"
        step = f", step {state.step + 1}" if state.step is not None else ""
        return "under_way", f"{state.phase}{step}, weight {state.weight}"

    @cached_property
    def rescan(self) -> RescanRecord | None:
        """What the newest re-scan says of the candidate, if there was one since it is served."""
        candidate = self.known.candidate
        return last_rescan(self.index.workspace, candidate) if candidate is not None else None

    @property
    def verdicts(self) -> tuple[VerdictRef, ...]:
        """Of this release: a rollback keeps those that led to it."""
        found: dict[str, VerdictRef] = {}
        for number in range(len(self.known.commits)):
            state = self.index.state(self.known, number)
            for verdict in state.verdicts if state is not None else ():
                found[verdict.report] = verdict
        return tuple(found.values())

    def refusals(self) -> Iterable[Refusal]:
        for verdict in self.verdicts:
            if verdict.verdict == "pass":
                continue
            report = self.judge_report(verdict)
            if report is not None:
                yield refusal_by_judge(report)
            else:
                yield Refusal(by="judge", decision=verdict.verdict, reasons=(verdict.summary,))

    def judge_report(self, verdict: VerdictRef) -> JudgeReport | None:
        path = verdict_path(self.known.model, self.known.environment, verdict.report)
        text = self.index.workspace.gitops.read_text(path)
        if text is None:
            return None
        try:
            return JudgeReport.model_validate(json.loads(text))
        except (ValueError, ValidationError) as error:
            logger.warning("the judge's report %s cannot be read: %s", path, error)
            return None

    def evidence(self) -> Iterable[EvidenceDigest]:
        occupant = self.index.occupant(self.known)
        if occupant is not None:
            yield EvidenceDigest(kind="gates", digest=occupant.evidence)
        if (rescan := self.rescan) is not None:
            yield EvidenceDigest(kind=f"re-scan {rescan.result}", digest=rescan.content_digest())
        for verdict in self.verdicts:
            yield EvidenceDigest(kind=f"verdict {verdict.verdict}", digest=verdict.report)

    def next_steps(self, result: Result) -> Iterable[str]:
        model, environment = self.known.model, self.known.environment
        place = f"{model} --env {environment}"
        newest = self.index.workspace.gitops.read_state(model, environment)
        denied = self.known.candidate and newest.is_denied(self.known.candidate)
        if denied:
            yield f"release another candidate: this one is denylisted ({denied.reason})"
            yield (
                f"where the verdict was wrong: `lockgate judge` on the traces of `lockgate logs {self.known.name} --step canary`, "
                f"then `lockgate lift {place} --candidate {denied.candidate.short} --key FILE --reason WHY`"
            )
        if self.rescan is not None and self.rescan.findings:
            found = "; ".join(map(str, self.rescan.findings[:3]))
            yield (
                f"the re-scan of {self.rescan.at.date()} refuses it today ({found}): release another candidate, or have whoever "
                "answers for policy.yaml add a waiver"
            )
        if result == "aborted":
            yield "nobody is blamed: release the same spec again once the cause is gone"
        if newest.release_under_way != self.known.release:
            return
        if newest.phase is Phase.HELD:
            yield f"`lockgate promote {place} --resume --reason WHY` judges on, `lockgate rollback {place}` ends it"
        elif newest.phase is Phase.AWAITING_APPROVAL:
            request = self.request(newest)
            yield f"`lockgate approve {place}{request}` decides; without `--key` it only shows what speaks for and against"
        else:
            yield f"`lockgate reconcile {place}` goes on with it where nobody does"

    def request(self, state: ReleaseState) -> str:
        try:
            request = pending_request(self.index.workspace, state)
        except LockgateError as error:
            logger.warning("what waits cannot be told: %s", error.message)
            return ""
        if request is None:
            return ""
        return f" --step {request.step + 1} --request {request.content_digest().short} --key FILE"
