"""Releases as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from lockgate.adapters.report.headline import name_of, status_of
from lockgate.adapters.report.model import ReleaseStory
from lockgate.domain.gates.base import Decision
from lockgate.domain.judge import Verdict

_STYLES = {"good": "green", "bad": "red", "open": "yellow"}
_DECISIONS = {
    Decision.PASS: ("pass", "green"),
    Decision.FAIL: ("FAIL", "bold red"),
    Decision.INSUFFICIENT_DATA: ("no data", "yellow"),
}
_VERDICTS = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.INSUFFICIENT_DATA: "yellow",
    Verdict.METRICS_OUTAGE: "yellow",
}


def render_table(releases: Iterable[ReleaseStory]) -> Table:
    """One line a release: name, candidate digest, gates, verdict, phase, seconds. Says the same without colours."""
    table = Table(title="Releases", title_justify="left", header_style="bold")
    table.add_column("release", overflow="fold")
    table.add_column("digest", no_wrap=True)
    table.add_column("gates")
    table.add_column("verdict")
    table.add_column("phase")
    table.add_column("seconds", justify="right", no_wrap=True)
    for story in releases:
        status = status_of(story)
        table.add_row(
            Text(name_of(story)),
            story.candidate.digest.short,
            _gates(story),
            Text(story.verdict, style=_VERDICTS[story.verdict]) if story.verdict else Text("–"),
            Text(status.word, style=_STYLES[status.tone]),
            f"{story.seconds:.0f}",
        )
    return table


def _gates(story: ReleaseStory) -> Text:
    parts = []
    for result in story.gates:
        word, style = _DECISIONS[result.decision]
        parts.append(Text.assemble(f"{result.gate} ", (word, style)))
    parts += [
        Text.assemble(f"{gate} ", ("MISSING", "bold red"))
        for gate in story.required_gates
        if all(r.gate != gate for r in story.gates)
    ]
    return Text("\n").join(parts) if parts else Text("none")
