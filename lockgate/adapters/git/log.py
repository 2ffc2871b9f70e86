"""Reading `git log`: commits as history entries, and the files that they touched."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from lockgate.domain import gitops
from lockgate.domain.gitops import HistoryEntry

_FIELDS = ("%H", "%ct", "%an <%ae>", "%B", "")
# Neither a name nor a message can hold a NUL, so nobody's words begin a record.
_FORM = "--format=%x00" + "%x00".join(_FIELDS)

Record = tuple[str, ...]

LOG = ("log", _FORM, "--no-show-signature")
"""Arguments whose output `records` splits and `read_entry` reads."""
LANDED = (
    *LOG, "--first-parent", "--diff-merges=first-parent", "--name-status", "--no-renames",
)  # fmt: skip
"""Arguments for `read_landed`: the branch's own commits, each with what it changed of the one before."""


@dataclass(frozen=True)
class Touched:
    """Paths that one commit wrote and removed."""

    written: tuple[str, ...]
    removed: tuple[str, ...]


def records(output: str) -> list[Record]:
    """The fields of each commit; the last one is what follows its message."""
    parts = output.split("\0")[1:]
    return [tuple(parts[n : n + len(_FIELDS)]) for n in range(0, len(parts), len(_FIELDS))]


def read_entry(record: Record) -> HistoryEntry:
    """The commit of one record."""
    commit, seconds, author, text, _ = record
    message = gitops.parse_message(text)
    at = datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
    return HistoryEntry(
        commit=commit,
        at=at,
        author=author,
        subject=message.subject,
        body=message.body,
        trailers=message.trailers,
    )


def read_landed(record: Record) -> tuple[HistoryEntry, Touched]:
    """The commit of one record of `LANDED`, and what it did."""
    changes = [line.split("\t", 1) for line in record[-1].splitlines() if "\t" in line]
    return read_entry(record), Touched(
        written=tuple(path for status, path in changes if status != "D"),
        removed=tuple(path for status, path in changes if status == "D"),
    )
