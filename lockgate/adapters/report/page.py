"""The page: panels and tables of every release, put into the template."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lockgate.adapters.report import wording
from lockgate.adapters.report.canvas import TimeAxis
from lockgate.adapters.report.counts import errors_panel, requests_panel
from lockgate.adapters.report.headline import Status, answer, name_of, status_of
from lockgate.adapters.report.judgement import (
    VERDICT_WORDS,
    evidence_panel,
    last_metrics,
    timed_looks,
    verdict_panel,
    was_judged,
)
from lockgate.adapters.report.model import Bake, ReleaseStory, ReportInput, Watched
from lockgate.adapters.report.offline import load_panel, recipes_panel, scores_panel
from lockgate.adapters.report.panels import (
    Panel,
    latency_panel,
    time_axis,
    track_names,
    weight_panel,
)
from lockgate.adapters.report.traces import Trace, read_trace
from lockgate.domain.judge import JudgeReport, MetricVerdict
from lockgate.errors import ReportError

_TTFT = "vllm:time_to_first_token_seconds"
_ITL = "vllm:inter_token_latency_seconds"


@dataclass(frozen=True)
class ReleaseView:
    """One release, ready for the template."""

    anchor: str
    name: str
    story: ReleaseStory
    status: Status
    scores: Panel | None
    load: Panel | None
    panels: tuple[Panel, ...]
    bake: tuple[Panel, ...]
    bake_words: str
    """What was compared during the bake; empty where there was none."""
    bake_tracks: dict[str, str]
    no_canary: str
    """Why there are no panels; empty where there are."""
    trace_notes: tuple[str, ...]
    tracks: dict[str, str]
    last_look: JudgeReport | None
    metrics: tuple[MetricVerdict, ...]
    elapsed: tuple[str, ...]
    """Time of each transition on the release's time axis."""
    started: str


def render_report(report: ReportInput) -> str:
    """The report as one HTML page that loads nothing: styles and figures are in it, and there is no script."""
    environment = Environment(
        loader=PackageLoader("lockgate.adapters.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=wording.duration,
        day_and_time=wording.day_and_time,
        time_of_day=wording.time_of_day,
        number=wording.number,
        evidence=wording.evidence,
        percent=wording.signed_percent,
        points=wording.signed_points,
    )
    environment.globals.update(
        effect_bar=wording.effect_bar,
        interval_words=wording.interval_words,
        metric_words=wording.metric_words,
        signed_percent=wording.signed_percent,
        signed_points=wording.signed_points,
        verdict_words=VERDICT_WORDS,
        missing=wording.MISSING,
        was_judged=was_judged,
    )
    environment.tests["was_judged"] = was_judged
    views = [_release_view(story, number) for number, story in enumerate(report.releases, start=1)]
    leading = answer(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        answer=leading,
        leading=next((v for v in views if leading and v.story is leading.story), None),
        releases=views,
        recipes=recipes_panel(report.recipes),
    )


def write_report(report: ReportInput, path: Path) -> Path:
    """Write the page to `path`, whole or not at all; returns `path`. Raises `ReportError` if it cannot be written."""
    page = render_report(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(page)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ReportError(
            f"the report could not be written to {path}: {error.strerror or error}",
            hint="give another path, or make room and run `lockgate report` again",
        ) from error
    return path


def _release_view(story: ReleaseStory, number: int) -> ReleaseView:
    trace = read_trace(story.traces, story.trace_lines)
    prefix = f"r{number}"
    axis = time_axis(story, trace)
    panels: tuple[Panel, ...] = ()
    no_canary = ""
    if story.refused:
        no_canary = "There was no canary: the gates refused the candidate before it met traffic."
    elif story.first:
        no_canary = "There was no canary: a first release has no stable version to be compared with, and took all traffic."
    elif axis is None:
        no_canary = "There is nothing to draw: neither transitions nor looks of the judge nor a trace are at hand."
    else:
        panels = _panels(story, trace, axis, prefix)
    looks = timed_looks(story)
    bake, bake_notes = _bake(story.bake, f"{prefix}-bake")
    return ReleaseView(
        anchor=f"release-{number}",
        name=name_of(story),
        story=story,
        status=status_of(story),
        scores=scores_panel(story, prefix),
        load=load_panel(story, prefix),
        panels=panels,
        bake=bake,
        bake_words=_bake_words(story.bake) if bake else "",
        bake_tracks=track_names(story.bake) if story.bake is not None else {},
        no_canary=no_canary,
        trace_notes=(*(_trace_notes(trace) if panels else ()), *bake_notes),
        tracks=track_names(story),
        last_look=looks[-1][1] if looks else None,
        metrics=tuple(last_metrics(story)),
        elapsed=tuple(axis.clock(t.time.timestamp()) for t in story.transitions) if axis else (),
        started=wording.day_and_time(story.transitions[0].time) if story.transitions else "",
    )


def _panels(story: Watched, trace: Trace, axis: TimeAxis, prefix: str) -> tuple[Panel, ...]:
    return (
        weight_panel(story, axis, prefix),
        verdict_panel(story, axis, prefix),
        evidence_panel(story, axis, prefix),
        latency_panel(
            story, trace, axis, prefix, key="ttft", title="Time to first token", name=_TTFT
        ),
        latency_panel(
            story, trace, axis, prefix, key="itl", title="Inter-token latency", name=_ITL
        ),
        errors_panel(story, trace, axis, prefix),
        requests_panel(story, trace, axis, prefix),
    )


def _bake(bake: Bake | None, prefix: str) -> tuple[tuple[Panel, ...], tuple[str, ...]]:
    """The panels of a bake, and what is amiss with its trace. None where nothing was watched."""
    if bake is None or not (bake.looks or bake.traces or bake.trace_lines):
        return (), ()
    trace = read_trace(bake.traces, bake.trace_lines)
    axis = time_axis(bake, trace)
    if axis is None:
        return (), ()
    return _panels(bake, trace, axis, prefix), _trace_notes(trace)


def _bake_words(bake: Bake | None) -> str:
    if bake is None or not bake.control_percent:
        return "No request stayed on the old version: absolute limits alone were judged."
    return (
        f"{bake.control_percent}% of the requests stayed on the old version as control. Where that is not the same load a "
        "replica, latencies are shown and not judged: fewer requests on a replica make it look faster."
    )


def _trace_notes(trace: Trace) -> tuple[str, ...]:
    notes = [
        f"Trace file {name} is not there: what it held is missing below."
        for name in trace.missing_files
    ]
    if trace.unreadable:
        notes.append(
            f"{trace.unreadable} of {trace.lines} lines of the trace could not be read and were left out."
        )
    return tuple(notes)
