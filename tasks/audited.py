"""What an audit comes to: the commits of one model, and what does not hold of them."""

from __future__ import annotations

from collections.abc import Iterator

from lockgate.domain.base import Frozen


class Problem(Frozen):
    """Something in the history that does not hold."""

    kind: str
    """A decision's flaw by name, or `approval_missing`, `unsigned_lift`, `changed_by_hand`, `out_of_order`,
    `decision_removed`, `verdict_changed`, `unreadable`."""
    message: str


class AuditedCommit(Frozen):
    """One commit: who did what, when, on what evidence."""

    commit: str
    at: str
    environment: str
    author: str
    who: str
    """Whoever approved, decided or asked for it; else the commit's author."""
    did: str
    """The commit's subject."""
    kind: str
    """The transition, or `approve`, `reject`, `lift`, or `other`."""
    release: str | None = None
    candidate: str | None = None
    evidence: str | None = None
    verdict: str | None = None
    verified: tuple[str, ...] = ()
    """Decisions in this commit, or that it rests on, whose signatures are good: `approve by NAME`."""
    told: tuple[str, ...] = ()
    """The same of pull requests: what only the forge's word says. Its merge is on the protected branch."""
    problems: tuple[Problem, ...] = ()


class Audit(Frozen):
    """Of one model."""

    model: str
    commits: tuple[AuditedCommit, ...]
    """Oldest first."""

    @property
    def problems(self) -> list[tuple[AuditedCommit, Problem]]:
        return [(commit, problem) for commit in self.commits for problem in commit.problems]

    def as_text(self) -> Iterator[str]:
        for row in self.commits:
            yield f"{row.at} {row.commit[:10]} {row.did}"
            told = [("by", row.who), ("candidate", row.candidate), ("evidence", row.evidence),
                    ("verdict", row.verdict), ("verified", ", ".join(row.verified)),
                    ("told", ", ".join(row.told))]  # fmt: skip
            for label, text in told:
                if text:
                    yield f"    {label:10} {text}"
            for problem in row.problems:
                yield f"    PROBLEM    {problem.kind}: {problem.message}"
        count = len(self.problems)
        decisions = sum(len(row.verified) for row in self.commits)
        unsigned = sum(len(row.told) for row in self.commits)
        words = f", {unsigned} on a forge's word, unsigned" if unsigned else ""
        yield f"{len(self.commits)} commits, {decisions} decisions verified{words}, {count} problems"
