"""One step's trace on disk: the judge's memory.

A driver that dies leaves it behind; the next one replays it, spends no alpha twice and comes to the same verdict. So that a
release may wait for weeks, what the judge has made of the trace so far is put aside now and then: a look reads the lines since.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lockgate.domain.judge import JudgeConfig, JudgeReport
from lockgate.domain.trace import RequestRow, Scrape, Track, parse_line, to_line
from lockgate.errors import MetricsError
from tasks.checkpoints import bring_back, put_aside
from tasks.judging import StepJudge

CHECKPOINT_LINES = 250
"""Lines that are at most read again: about a second's work."""


class StepTrace:
    """Append-only file of one step's scrapes, one JSON line each, and beside it what the judge said after each look."""

    def __init__(self, path: Path, looks: Path) -> None:
        self.path = path
        self.newest: dict[tuple[Track, str], float] = {}
        """Time of the last scrape of each instance that answered it. What the driver knows itself, it says by its own clock:
        that tells nobody how far a store of metrics has been read."""
        self._last: float | None = None
        """Time of the newest entry."""
        self._looks = looks
        self._checkpoint = path.with_suffix(".checkpoint.json")
        self._size, self._lines = 0, 0
        """Of what the judge has seen of the trace."""
        self._unkept = 0
        """Lines of it since the last checkpoint."""
        self._alone = True
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_partial_line(path)
        _drop_partial_line(looks)

    def replay(self, judge: StepJudge) -> float | None:
        """Tell the judge everything seen so far, beginning where a checkpoint ends; the time of the newest scrape, None for
        an empty trace.

        Raises:
            MetricsError: a line is no scrape; a trace with a hole in it decides nothing.
        """
        if not self.path.exists():
            return None
        kept = bring_back(self._checkpoint, self.path, step=judge.step)
        if kept is not None:
            (state, self.newest, self._last), self._size, self._lines = kept
            judge.resume(state)
        with self.path.open("rb") as lines:
            lines.seek(self._size)
            for line in lines:
                self._lines += 1
                try:
                    seen = parse_line(line.decode(errors="replace"))
                except ValueError as error:
                    raise MetricsError(
                        f"line {self._lines} of the trace is not readable: {error}", log=self.path,
                        hint="move the file away: the step is then judged from now on",
                    ) from error  # fmt: skip
                judge.observe(seen)
                self._note(seen)
                self._size += len(line)
                self._unkept += 1
        self.keep(judge)
        return self._last

    def append(self, records: Sequence[Scrape | RequestRow]) -> None:
        """Written and handed to the operating system before the judge sees them: a SIGKILL loses at most a partial line."""
        written = "".join(to_line(record) + "\n" for record in records).encode()
        with self.path.open("ab") as lines:
            # What another process has written since, or writes at this moment, was not this judge's to see.
            self._alone = self._alone and lines.tell() == self._size
            lines.write(written)
            lines.flush()
            self._alone = self._alone and lines.tell() == self._size + len(written)
        self._size += len(written)
        self._lines += len(records)
        self._unkept += len(records)
        for record in records:
            self._note(record)

    def keep(self, judge: StepJudge) -> None:
        """Put the judge aside, now and then, after it has seen all of the trace: whoever comes next reads on from here."""
        if self._alone and self._unkept >= CHECKPOINT_LINES:
            self._unkept = 0
            put_aside(
                self._checkpoint, self.path, step=judge.step, size=self._size, lines=self._lines,
                held=(judge.state, self.newest, self._last),
            )  # fmt: skip

    def _note(self, record: Scrape | RequestRow) -> None:
        self._last = record.time if self._last is None else max(record.time, self._last)
        if isinstance(record, Scrape) and not record.scraped:
            return
        key = (record.track, record.instance)
        self.newest[key] = max(record.time, self.newest.get(key, record.time))

    def judged_by(self, config: JudgeConfig, path: Path) -> None:
        """Keep how the step is judged, for whoever judges the trace again; nothing is decided from it."""
        path.write_text(json.dumps(config.to_data(), indent=1) + "\n")

    def said(self, report: JudgeReport) -> None:
        """Keep what the judge said, for the release's report; nothing is decided from it."""
        with self._looks.open("a") as lines:
            lines.write(json.dumps(report.to_data()) + "\n")


def newest_entry(path: Path) -> float | None:
    """The time of a trace's last whole line that is readable, without reading what is far before it; None where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * _LONGEST_LINE))
            whole = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(whole):
        with suppress(ValueError):
            return parse_line(line.decode()).time
    return None


_LONGEST_LINE = 256 * 1024
"""Bytes that a scrape of one instance stays below."""


def _drop_partial_line(path: Path) -> None:
    """A writer killed in mid-line leaves a tail without a newline; what follows must not be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep > 0:
            file.seek(max(0, keep - 65536))
            chunk = file.read(keep - file.tell())
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                keep = keep - len(chunk) + newline + 1
                break
            keep -= len(chunk)
        if keep != size:
            file.truncate(keep)
