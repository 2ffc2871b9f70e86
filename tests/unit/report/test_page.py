"""The page as a release manager gets it: what it says first, what it holds, and what it can never do."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lockgate.adapters.report import (
    ReleaseStory,
    ReportInput,
    RequestedApproval,
    TrafficSummary,
    load_points,
    render_report,
    write_report,
)
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkEvidence, Fingerprint, ProfileResult
from lockgate.domain.gates.base import Decision
from lockgate.domain.judge import Verdict
from lockgate.domain.release_state import Phase
from lockgate.errors import ReportError

from .stories import (
    NOT_SCANNED,
    START,
    baked_release,
    first_release,
    gates,
    promoted_release,
    refused_release,
    rolled_back_release,
    whole_report,
)

VOID = {"meta", "br", "link", "img", "input", "hr", "col"}


class Page(HTMLParser):
    """Elements, ids, links and visible text of a page; `unbalanced` names the first wrong end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.unbalanced: str | None = None
        self._open: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        elif self.unbalanced is None:
            self.unbalanced = f"</{tag}> while <{self._open[-1:]}> is open"

    def handle_data(self, data: str) -> None:
        if not {"style", "title", "desc"} & set(self._open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def report_of(*releases: ReleaseStory, traffic: TrafficSummary | None = None) -> ReportInput:
    return ReportInput(
        title="Report", generated_at=START, model="smollm2", environment="local",
        releases=releases, traffic=traffic,
    )  # fmt: skip


@pytest.fixture(scope="module")
def demo_text() -> str:
    return render_report(whole_report())


@pytest.fixture(scope="module")
def rolled_back_text() -> str:
    return render_report(report_of(rolled_back_release()))


@pytest.fixture(scope="module")
def demo(demo_text: str) -> Page:
    return Page(demo_text)


def test_the_page_is_well_formed_and_no_id_is_used_twice(demo: Page) -> None:
    assert demo.unbalanced is None
    ids = [attrs["id"] for _, attrs in demo.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing_and_runs_nothing(demo: Page) -> None:
    names = {name for name, _ in demo.elements}
    assert not names & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "image",
        "foreignobject",
    }
    for _, attrs in demo.elements:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "xlink:href", "src", "action"):
            assert (attrs.get(name) or "#").startswith("#"), attrs
        assert "url(" not in (attrs.get("style") or "").replace("url(#", "")


def test_every_link_within_the_page_leads_somewhere(demo: Page) -> None:
    ids = {attrs["id"] for _, attrs in demo.elements if "id" in attrs}
    targets = {attrs["href"] for _, attrs in demo.elements if attrs.get("href")}
    targets |= {attrs["xlink:href"] for _, attrs in demo.elements if attrs.get("xlink:href")}
    assert {(target or "")[1:] for target in targets} <= ids


def test_every_figure_has_a_title_and_a_description_with_its_numbers(demo_text: str) -> None:
    figures = re.findall(r"<svg [^>]*role=\"img\".*?</svg>", demo_text, re.S)
    assert len(figures) > 20
    for figure in figures:
        root = ET.fromstring(figure)
        named = {e.get("id"): e.text for e in root if e.tag.rpartition("}")[2] in ("title", "desc")}
        labels = (root.get("aria-labelledby") or "").split()
        assert set(labels) == set(named)
        assert all(named.values())
    ttft = next(f for f in figures if "r3-ttft-wide" in f)
    assert re.search(r"canary \(slot a\): p50 \d+ to \d+ ms, p90 \d+ to [\d,]+ ms", ttft)


def test_tables_have_header_cells_for_columns_and_rows(demo: Page) -> None:
    headers = demo.all("th")
    assert headers
    assert all(h.get("scope") in ("col", "row") for h in headers)


def test_what_comes_from_outside_is_text_and_never_markup() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=y>"
    story = rolled_back_release().model_copy(
        update={
            "looks": (), "release": evil, "title": evil + "$a_b$", "reasons": (evil,), "scan_notes": (evil,),
            "transitions": tuple(
                t.model_copy(update={"subject": evil}) for t in rolled_back_release().transitions
            ),
            "trace_lines": tuple(
                line.replace("slot-a-0", "</svg><script>0</script>") for line in rolled_back_release().trace_lines
            ),
        }
    )  # fmt: skip
    page = Page(render_report(report_of(story)))
    assert page.unbalanced is None
    assert not page.all("script") and not page.all("img")
    assert evil in page.text


def test_the_first_lines_say_what_happened_to_the_last_release_and_where_the_traffic_is(
    demo: Page,
) -> None:
    start = demo.text.index("Release 4 (int4) was refused at the evaluation gate")
    traffic = demo.text.index("Stable is Release 2 (int8) in slot b with all the traffic.")
    assert start < traffic < demo.text.index("Nothing waits for approval") < 1200


def test_a_rolled_back_release_names_the_metric_the_numbers_and_the_denylist(
    rolled_back_text: str,
) -> None:
    page = Page(rolled_back_text)
    reason = rolled_back_release().reasons[0]
    assert "worse than the margin of +35.0%" in reason
    assert f"was rolled back {reason}" in page.text
    assert "Denylist the candidate is on it" in page.text
    assert "Verdict to no traffic 0.8 s" in page.text


def waiting(story: ReleaseStory, **changes: object) -> ReleaseStory:
    return story.model_copy(
        update={
            "approval": RequestedApproval(weight=50, command="lockgate approve smollm2"),
            "phase": Phase.AWAITING_APPROVAL, "outcome": None, "scan_notes": (),
            "looks": (), "trace_lines": (), **changes,
        }
    )  # fmt: skip


CLEAN = TrafficSummary(seconds=60, requests=100, failed=0, cut_short=0)


@pytest.mark.parametrize(
    ("changes", "traffic", "expected"),
    [
        ({}, CLEAN, "Yes Nothing in this report speaks against"),
        ({"scan_notes": (NOT_SCANNED,)}, CLEAN, "Yes, knowing the open points"),
        ({"verdict": Verdict.INSUFFICIENT_DATA}, CLEAN, "Not yet"),
        ({"verdict": None}, CLEAN, "Not yet"),
        ({"verdict": Verdict.METRICS_OUTAGE}, CLEAN, "No The raise to 50% should not be approved"),
        ({"verdict": Verdict.FAIL}, CLEAN, "No The raise to 50% should not be approved: Judge: fail."),
        ({"gates": gates()[:2]}, CLEAN, "should not be approved: Gate benchmark: no result."),
        (
            {"gates": gates(scan=(Decision.INSUFFICIENT_DATA, "no scanner ran"))},
            CLEAN,
            "should not be approved: Gate scan: has too few data: no scanner ran",
        ),
        ({"denylisted": True}, CLEAN, "should not be approved: The candidate is on the denylist"),
        ({}, CLEAN.model_copy(update={"failed": 3}), "should not be approved: Traffic: 100 requests, 3 failed"),
    ],
)  # fmt: skip
def test_the_page_answers_whether_a_raise_may_be_approved(
    changes: dict[str, object], traffic: TrafficSummary, expected: str
) -> None:
    page = Page(render_report(report_of(waiting(promoted_release(), **changes), traffic=traffic)))
    asked = page.text.index("May this raise be approved?")
    assert expected in page.text[asked : asked + 400]


def test_a_pass_that_shows_nothing_about_latency_is_an_open_point() -> None:
    safety = next(r for r in promoted_release().looks if r.verdict is Verdict.PASS)
    story = waiting(promoted_release(), looks=(safety,))
    page = Page(render_report(report_of(story, traffic=CLEAN)))
    assert "Yes, knowing the open points" in page.text
    assert "pass, without showing ttft, itl" in page.text


def test_not_scanned_stands_on_the_first_screen_and_at_its_release(demo: Page) -> None:
    assert demo.text.count("NOT SCANNED") == 5


def test_a_report_of_nothing_says_so() -> None:
    page = Page(render_report(report_of()))
    assert "Nothing was released yet" in page.text
    assert "holds no commit" in page.text


def test_missing_data_is_named_and_never_drawn_as_an_empty_chart(tmp_path: Path) -> None:
    story = rolled_back_release().model_copy(
        update={"looks": (), "trace_lines": (), "traces": (tmp_path / "step-7.jsonl",)}
    )
    text = render_report(report_of(story))
    page = Page(text)
    assert "Trace file step-7.jsonl is not there" in page.text
    assert "the trace holds no observation of vllm:time_to_first_token_seconds" in page.text
    assert "the judge was not asked, or its reports are not at hand" in page.text
    assert "the trace counts no request on either track" in page.text
    # Only the weight is known, from the transitions, and the scores.
    assert len(re.findall(r'<svg [^>]*role="img"', text)) == 4


def test_scores_load_and_recipes_are_drawn_with_their_numbers_in_words(demo_text: str) -> None:
    figures = {
        name: found[0]
        for name in ("r2-scores", "r2-load", "recipes")
        if (found := re.findall(rf'<svg [^>]*="{name}-wide-title.*?</svg>', demo_text, re.S))
    }
    assert figures.keys() == {"r2-scores", "r2-load", "recipes"}
    assert "lockgate_facts 0.68 against 0.66, pass" in figures["r2-scores"]
    assert "eight: 7.8 in flight, TTFT p50 412 ms" in figures["r2-load"]
    assert "int4: 113 MB, mean score 0.7, 162 tokens/s, refused" in figures["recipes"]
    page = Page(demo_text)
    assert "beside this page in answers/" in page.text
    assert "over 40 documents" in page.text


def test_a_single_recipe_and_a_benchmark_without_its_evidence_are_not_drawn() -> None:
    text = render_report(report_of(first_release()))
    assert "recipes-wide" not in text
    assert "-load-wide" not in text


def test_the_load_of_a_sweep_is_placed_by_the_requests_in_flight() -> None:
    latency = {"mean": 500.0, "p50": 400.0, "p90": 900.0, "p99": 950.0}
    profile = ProfileResult(
        profile="eight", completed=8, failed=0, duration_seconds=1, output_tokens_per_second=100,
        requests_per_second=16, ttft_ms=latency, tpot_ms=latency, itl_ms=latency, e2e_ms=latency,
    )  # fmt: skip
    single = profile.model_copy(update={"profile": "single", "requests_per_second": 2.0})
    mark = Fingerprint(
        hardware=Digest.of_bytes(b"h"), cpu="c", cores=1, engine="e", engine_version="0", arguments=()
    )  # fmt: skip
    evidence = BenchmarkEvidence(
        subject=Digest.of_bytes(b"s"), generator="g", fingerprint=mark, profiles=(profile, single), seconds=1
    )  # fmt: skip
    points = load_points(evidence)
    assert [(p.profile, p.in_flight) for p in points] == [("single", 1.0), ("eight", 8.0)]
    assert (points[0].ttft_p50_ms, points[0].tpot_p90_ms) == (400.0, 900.0)


def test_lines_that_cannot_be_read_are_counted_and_the_rest_is_drawn() -> None:
    whole = rolled_back_release()
    broken = whole.model_copy(
        update={
            "looks": (),
            "trace_lines": (*whole.trace_lines, '{"time": 1, "tra', "not json"),
        }
    )
    page = Page(render_report(report_of(broken)))
    count = len(whole.trace_lines) + 2
    assert f"2 of {count} lines of the trace could not be read" in page.text
    assert "canary (slot a): p50" in page.text


def test_a_refused_release_has_no_canary_and_says_why() -> None:
    page = Page(render_report(report_of(refused_release())))
    assert "the gates refused the candidate before it met traffic" in page.text


@pytest.mark.slow
def test_the_same_data_gives_the_same_page(rolled_back_text: str) -> None:
    assert render_report(report_of(rolled_back_release())) == rolled_back_text


def test_a_report_is_written_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "smollm2.html"
    write_report(report_of(), path)
    before = path.read_text()
    assert write_report(report_of(first_release()), path) == path
    assert path.read_text() != before
    assert [p.name for p in path.parent.iterdir()] == ["smollm2.html"]


def test_a_report_that_cannot_be_written_says_where_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(ReportError, match="taken"):
        write_report(report_of(), tmp_path / "taken" / "report.html")


@pytest.mark.slow
def test_the_bake_is_drawn_like_the_canary_with_the_old_version_as_control() -> None:
    text = render_report(report_of(baked_release()))
    page = Page(text)
    assert page.unbalanced is None
    assert "5% of the requests stayed on the old version as control" in page.text
    ids = {attrs.get("id") or "" for _, attrs in page.elements}
    for panel in ("weight", "verdicts", "ttft", "itl", "requests"):
        assert any(name.startswith(f"r1-bake-{panel}-wide") for name in ids), panel
    (ttft,) = re.findall(r"<desc id=.r1-bake-ttft-wide[^>]*>(.*?)</desc>", text)
    assert re.search(r"old version \(slot a\): p50 \d+ to \d+ ms", ttft)
    assert re.search(r"new version \(slot b\): p50 \d+ to \d+ ms", ttft)
    weight = re.search(r"<desc id=.r1-bake-weight-wide[^>]*>(.*?)</desc>", text)
    assert weight is not None
    assert "baking at 95%" in weight.group(1)
    assert "baking at 100%" in weight.group(1)


@pytest.mark.slow
def test_a_bake_that_nobody_recorded_is_not_drawn_and_one_without_control_says_so() -> None:
    unseen = baked_release().model_copy(update={"bake": None})
    assert "Bake" not in Page(render_report(report_of(unseen))).words
    text = Page(render_report(report_of(baked_release(0)))).text
    assert "absolute limits alone were judged" in text
