"""A judge that was put aside and brought back says what one says that has read all of the trace, and reads little again."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lockgate.domain.judge import Judge
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.spec import LatencyObjective, ServiceLevels
from lockgate.domain.trace import Scrape, parse_line, to_line
from tasks import step_trace
from tasks.checkpoints import bring_back, put_aside
from tasks.judging import StepJudge
from tasks.step_trace import StepTrace
from tests.unit.judge.test_recorded_traces import recorded
from tests.unit.judge.test_verdicts_on_traces import config
from tests.unit.judge.traces import Server, trace
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.world import SPEC, in_bake, in_canary

TRACES = {
    **{name: lambda name=name: recorded(name) for name in ("same", "broken-template", "canary-killed", "stable-killed")},
    "slow": lambda: list(trace(Server(), Server(ttft=0.5, tail=0.02), 120, 3)),
    "drifting": lambda: list(trace(Server(drift_sd=0.3), Server(drift_sd=0.3, errors=0.02), 200, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_ten_restarts_from_checkpoints_change_no_report(tmp_path: Path, name: str) -> None:
    lines = TRACES[name]()
    settings = config(settle_s=4.0, hold_s=45.0)
    whole, restarted = Judge(settings), Judge(settings)
    file, kept = tmp_path / "trace.jsonl", tmp_path / "kept.json"
    file.write_text("".join(line + "\n" for line in lines))
    kills = set(random.Random(name).sample(range(len(lines)), 10))
    size = 0
    for number, line in enumerate(lines):
        size += len(line.encode()) + 1
        for judge in (whole, restarted):
            judge.observe(parse_line(line))
        if number in kills:
            put_aside(kept, file, step="s", size=size, lines=number + 1, held=restarted)
            found = bring_back(kept, file, step="s")
            assert found is not None
            restarted, *place = found
            assert place == [size, number + 1]
            assert restarted.look() == whole.look()
            assert restarted.decided() == whole.decided()
    assert restarted.look() == whole.look()


def test_a_bake_with_service_levels_is_brought_back_whole(tmp_path: Path) -> None:
    levels = ServiceLevels(ttft=LatencyObjective(quantile=0.9, seconds=1.0), error_ratio=0.05)
    state = in_bake().state
    assert state.canary is not None
    state = state.model_copy(update={"canary": state.canary.model_copy(update={"slos": levels})})
    seen = pairs(state, 240, errors=0.1)
    reports = []
    for cuts in ([0, len(seen)], [0, 70, 150, len(seen)]):
        path = tmp_path / str(len(cuts)) / "000001.jsonl"
        for begin, end in itertools.pairwise(cuts):
            kept, judge = opened(path, state)
            feed(kept, judge, seen[begin:end], every=5)
        _, judge = opened(path, state)
        reports.append((judge.look(None), judge.decided()))
    assert reports[0] == reports[1]
    assert reports[0][1] is not None and reports[0][1].verdict == "fail"


def pairs(state: ReleaseState, seconds: int, **ill: float) -> list[Scrape]:
    assert state.since is not None
    start = parse_time(state.since).timestamp()
    both = zip(
        scrapes("baseline", start, seconds), scrapes("canary", start, seconds, **ill), strict=True
    )
    return [s for pair in both for s in pair]


def opened(path: Path, state: ReleaseState) -> tuple[StepTrace, StepJudge]:
    """As a new driver finds them."""
    kept, judge = StepTrace(path, path.with_suffix(".looks.jsonl")), StepJudge(state)
    kept.replay(judge)
    return kept, judge


def feed(kept: StepTrace, judge: StepJudge, seen: Iterable[Scrape], every: int = 2) -> None:
    """As a driver that looks at so many scrapes at once."""
    waiting = list(seen)
    while waiting:
        now, waiting = waiting[:every], waiting[every:]
        kept.append(now)
        for scrape in now:
            judge.observe(scrape)
        kept.keep(judge)


@pytest.fixture
def state() -> ReleaseState:
    step = SPEC.steps[0].model_copy(update={"weight": 50})
    return in_canary(SPEC.model_copy(update={"steps": (step,)})).state


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines of traces that are read."""
    lines: list[str] = []

    def counted(line: str) -> Any:
        lines.append(line)
        return parse_line(line)

    monkeypatch.setattr(step_trace, "parse_line", counted)
    return lines


def test_what_a_look_reads_again_does_not_grow_with_the_time_that_a_release_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: ReleaseState, read: list[str]
) -> None:
    """Each look is one of a driver of its own, as for a release that waits for a person."""
    monkeypatch.setattr(step_trace, "CHECKPOINT_LINES", 20)
    path = tmp_path / "000001.jsonl"
    seen = pairs(state, 400)
    looks = []
    for at in range(0, len(seen), 6):
        read.clear()
        kept, judge = opened(path, state)
        feed(kept, judge, seen[at : at + 6], every=6)
        looks.append(len(read))
    assert max(looks) <= 20 + 6
    assert max(looks[: len(looks) // 4]) == max(looks[-len(looks) // 4 :])
    read.clear()
    whole = StepJudge(state)
    for scrape in seen:
        whole.observe(scrape)
    _, judge = opened(path, state)
    assert judge.look(None) == whole.look(None)
    assert len(path.read_text().splitlines()) == len(seen), "and the trace has lost nothing"


@pytest.mark.parametrize(
    "spoilt",
    ["another step", "another trace", "shorter trace", "other code", "torn", "foreign type", "stranger's lines"],
)  # fmt: skip
def test_a_checkpoint_of_anything_else_is_as_if_there_were_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: ReleaseState, read: list[str], spoilt: str
) -> None:  # fmt: skip
    monkeypatch.setattr(step_trace, "CHECKPOINT_LINES", 20)
    path = tmp_path / "000001.jsonl"
    seen = pairs(state, 60)
    kept, judge = opened(path, state)
    if spoilt == "stranger's lines":
        # Of another driver of the same step: this one's judge has not seen them.
        opened(path, state)[0].append(pairs(state, 2, errors=0.5))
    feed(kept, judge, seen)
    checkpoint = path.with_suffix(".checkpoint.json")
    if spoilt == "another step":
        assert state.canary is not None
        tuned = state.canary.judge.model_copy(update={"drift_sd": 0.1})
        state = state.model_copy(update={"canary": state.canary.model_copy(update={"judge": tuned})})  # fmt: skip
    elif spoilt == "another trace":
        path.write_text(path.read_text().replace('"up":true', '"up": true'))
    elif spoilt == "shorter trace":
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:30]))
    elif spoilt == "other code":
        monkeypatch.setattr("tasks.checkpoints._code", lambda: "other")
    elif spoilt == "torn":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    elif spoilt == "foreign type":
        document = json.loads(checkpoint.read_text())
        document["nodes"][0] = ["object", "subprocess", "Popen", []]
        checkpoint.write_text(json.dumps(document))
    assert checkpoint.exists() is (spoilt != "stranger's lines")
    read.clear()
    _, again = opened(path, state)
    lines = path.read_text().splitlines()
    assert len(read) == len(lines)
    fresh = StepJudge(state)
    for line in lines:
        fresh.observe(parse_line(line))
    assert again.look(None) == fresh.look(None)


def test_who_was_written_into_while_writing_keeps_no_checkpoint_and_the_next_driver_reads_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: ReleaseState, read: list[str]
) -> None:
    """Another driver of the step appends after this one has looked where the trace ends, and before its own lines."""
    monkeypatch.setattr(step_trace, "CHECKPOINT_LINES", 20)
    path = tmp_path / "000001.jsonl"
    seen, strange = pairs(state, 60), pairs(state, 2, errors=0.5)
    kept, judge = opened(path, state)
    feed(kept, judge, seen[:18])
    plain = Path.open

    class Raced:
        """The trace, as it is being appended to."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Raced:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: bytes) -> None:
            with plain(path, "ab") as other:
                other.writelines(to_line(scrape).encode() + b"\n" for scrape in strange)
            self.file.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with monkeypatch.context() as race:
        race.setattr(Path, "open", lambda path, mode: Raced(plain(path, mode)))
        kept.append(seen[18:20])
    for scrape in seen[18:20]:
        judge.observe(scrape)
    kept.keep(judge)
    assert not path.with_suffix(".checkpoint.json").exists()
    read.clear()
    _, again = opened(path, state)
    assert len(read) == 20 + len(strange)
    fresh = StepJudge(state)
    for line in path.read_text().splitlines():
        fresh.observe(parse_line(line))
    assert again.look(None) == fresh.look(None)


def test_what_ends_within_a_line_is_neither_kept_nor_brought_back(tmp_path: Path) -> None:
    file, kept = tmp_path / "trace.jsonl", tmp_path / "kept.json"
    file.write_bytes(b"one line\nanother\n")
    put_aside(kept, file, step="s", size=12, lines=1, held=None)
    assert not kept.exists()
    put_aside(kept, file, step="s", size=9, lines=1, held=None)
    assert bring_back(kept, file, step="s") == (None, 9, 1)
    document = json.loads(kept.read_text())
    ends = hashlib.sha256(2 * file.read_bytes()[:12]).hexdigest()
    kept.write_text(json.dumps({**document, "size": 12, "ends": ends}))
    assert bring_back(kept, file, step="s") is None
