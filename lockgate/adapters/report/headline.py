"""The first screen: what happened, where the traffic is, and whether a raise may be approved.

The answer is derived from the data by fixed rules and leans to "no": what is missing speaks against an approval, never for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lockgate.adapters.report.model import ReleaseStory, ReportInput
from lockgate.domain.gates.base import Decision
from lockgate.domain.judge import Verdict
from lockgate.domain.release_state import Outcome, Phase

Tone = Literal["good", "bad", "open", "none"]


@dataclass(frozen=True)
class Check:
    """One thing that the answer rests on."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class Status:
    """What became of a release, in one word and one sentence."""

    tone: Tone
    word: str
    sentence: str
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """Of the first screen."""

    story: ReleaseStory
    status: Status
    traffic: str
    question: str
    approval: Status
    checks: tuple[Check, ...]


def name_of(story: ReleaseStory) -> str:
    return story.title or story.release


def leading_story(report: ReportInput) -> ReleaseStory | None:
    """The release that the report is about: one that waits for approval, else the last one."""
    waiting = [s for s in report.releases if s.approval is not None]
    candidates = waiting or report.releases
    return candidates[-1] if candidates else None


def status_of(story: ReleaseStory) -> Status:
    name = name_of(story)
    why = story.reasons[0] if story.reasons else ""
    if story.refused:
        failed = [r.gate for r in story.gates if r.decision is not Decision.PASS]
        missing = [g for g in story.required_gates if all(r.gate != g for r in story.gates)]
        named = ", ".join([*failed, *(f"{gate} (no result)" for gate in missing)])
        plural = "gates" if len(failed) + len(missing) > 1 else "gate"
        return Status(
            "bad", f"refused: {named}", f"{name} was refused at the {named} {plural}", why
        )
    if story.approval is not None:
        asked = f"{name} waits for approval of {story.approval.weight}% of the traffic"
        return Status("open", "waits for approval", asked, why)
    if story.phase is Phase.HELD:
        return Status("open", "held", f"{name} is held", why)
    if story.outcome is Outcome.ROLLED_BACK:
        return Status("bad", "rolled back", f"{name} was rolled back", why)
    if story.outcome is Outcome.ABORTED:
        return Status("open", "aborted", f"{name} was taken back without blame", why)
    if story.outcome is Outcome.PROMOTED:
        how = "is the first release and takes all traffic" if story.first else "was promoted"
        baking = "; the version before it is kept warm" if story.phase is Phase.BAKING else ""
        return Status("good", "promoted", f"{name} {how}{baking}", why)
    if story.phase is None:
        return Status("open", "not released", f"{name} has not reached the release state", why)
    word = story.phase.value.replace("_", " ")
    weight = f" at {story.transitions[-1].weight}% of the traffic" if story.transitions else ""
    return Status("open", word, f"{name} is under way: {word}{weight}", why)


def answer(report: ReportInput) -> Answer | None:
    """None where there is no release to speak of."""
    story = leading_story(report)
    if story is None:
        return None
    checks = tuple(_checks(story, report))
    return Answer(
        story=story,
        status=status_of(story),
        traffic=_where_the_traffic_is(report),
        question="May this raise be approved?" if story.approval else "May I approve?",
        approval=_approval(story, checks),
        checks=checks,
    )


def _approval(story: ReleaseStory, checks: tuple[Check, ...]) -> Status:
    if story.approval is None:
        return Status("none", "Nothing waits for approval", "")
    weight = f"{story.approval.weight}%"
    against = [c.text for c in checks if c.tone == "bad"]
    if against:
        return Status("bad", "No", f"The raise to {weight} should not be approved: {against[0]}")
    if story.verdict is not Verdict.PASS and not story.first:
        return Status(
            "open",
            "Not yet",
            f"Nothing speaks against the raise to {weight}, but the judge has not passed it.",
        )
    if any(c.tone == "open" for c in checks):
        return Status(
            "good",
            "Yes, knowing the open points",
            f"The raise to {weight} rests on these points; those marked ! are open.",
        )
    return Status("good", "Yes", f"Nothing in this report speaks against the raise to {weight}.")


def _checks(story: ReleaseStory, report: ReportInput) -> list[Check]:
    checks = []
    for gate in story.required_gates:
        result = next((r for r in story.gates if r.gate == gate), None)
        if result is None:
            checks.append(Check("bad", f"Gate {gate}: no result."))
        elif result.decision is Decision.PASS:
            checks.append(Check("good", f"Gate {gate}: passed."))
        else:
            word = "failed" if result.decision is Decision.FAIL else "has too few data"
            checks.append(Check("bad", f"Gate {gate}: {word}: {result.reasons[0]}"))
    checks += [
        Check("bad", f"Gate {r.gate}: {r.decision.value.replace('_', ' ')}: {r.reasons[0]}")
        for r in story.gates
        if r.gate not in story.required_gates and r.decision is not Decision.PASS
    ]
    checks += [Check("open", note) for note in story.scan_notes]
    checks.append(_judge_check(story))
    if story.denylisted:
        checks.append(
            Check("bad", "The candidate is on the denylist: no automation releases it again.")
        )
    if report.traffic is not None:
        bad = report.traffic.failed + report.traffic.cut_short
        checks.append(
            Check(
                "bad" if bad else "good",
                f"Traffic: {report.traffic.requests:,} requests, {report.traffic.failed:,} failed, "
                f"{report.traffic.cut_short:,} cut short.",
            )
        )
    return checks


def _judge_check(story: ReleaseStory) -> Check:
    if story.refused:
        return Check("open", "Judge: not asked, the candidate never met traffic.")
    if story.verdict is None:
        if story.first:
            return Check(
                "open", "Judge: not asked, a first release has nothing to be compared with."
            )
        return Check("open", "Judge: no verdict yet.")
    said = {
        Verdict.PASS: _passed(story),
        Verdict.FAIL: Check("bad", "Judge: fail."),
        Verdict.INSUFFICIENT_DATA: Check("open", "Judge: insufficient data, which is not a pass."),
        Verdict.METRICS_OUTAGE: Check("bad", "Judge: metrics outage, nothing can be said."),
    }
    return said[story.verdict]


def _passed(story: ReleaseStory) -> Check:
    """A pass of a safety step shows nothing about margins: a release manager should know what was not shown."""
    last = max(story.looks, key=lambda report: report.time or 0.0, default=None)
    unshown = [
        metric.name
        for metric in (last.metrics if last is not None else ())
        if metric.criticality == "required" and metric.verdict is not Verdict.PASS
    ]
    if unshown:
        return Check(
            "open", f"Judge: pass, without showing {', '.join(unshown)} to be within the margin."
        )
    return Check("good", "Judge: pass.")


def _where_the_traffic_is(report: ReportInput) -> str:
    if report.stable is None:
        return "No version is stable: nothing serves."
    story = next((s for s in report.releases if s.candidate.digest == report.stable), None)
    who = name_of(story) if story is not None else f"candidate {report.stable.short}"
    slot = f" in slot {report.stable_slot.value}" if report.stable_slot is not None else ""
    under_way = [
        s.transitions[-1].weight
        for s in report.releases
        if s.outcome is None and s.transitions and s.candidate.digest != report.stable
    ]
    share = 100 - (under_way[-1] if under_way else 0)
    return f"Stable is {who}{slot} with {'all' if share == 100 else f'{share}% of'} the traffic."
