"""A file that arrives in pieces over several processes: whatever happened to it meanwhile, it ends as what was sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.adapters.sources.partial import Partial, finished
from lockgate.domain.digests import Digest
from tests.amounts import examples

CONTENT = bytes(range(256)) * 4


def _send(path: Path, sizes: list[int], until: int) -> int:
    """Send pieces of these sizes until so many bytes are there; gives where this call began."""
    with Partial(path) as partial:
        begin = partial.size
        for size in sizes:
            if partial.size < until:
                partial.write(CONTENT[partial.size : min(until, partial.size + size)])
        while partial.size < until:
            partial.write(CONTENT[partial.size : until])
        assert partial.digest == Digest.of_bytes(CONTENT[:until])
    return begin


def _damage(path: Path, at: int, piece: bytes, length: int | None) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(piece)] = piece
    path.write_bytes(bytes(data[:length]))


@settings(max_examples=examples(150))
@given(
    st.lists(st.integers(1, 300), max_size=6),
    st.integers(0, len(CONTENT)),
    st.sampled_from(["file", "file.pieces"]),
    st.integers(0, len(CONTENT)),
    st.binary(max_size=40),
    st.none() | st.integers(0, len(CONTENT)),
)
def test_whatever_a_crash_left_the_file_ends_as_what_was_sent(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    sent: int,
    damaged: str,
    at: int,
    piece: bytes,
    length: int | None,
) -> None:
    place = tmp_path_factory.mktemp("partial")
    path = place / "file"
    _send(path, sizes, sent)
    _damage(place / damaged, at, piece, length)
    _send(path, sizes, len(CONTENT))
    finished(path, place / "whole")
    assert (place / "whole").read_bytes() == CONTENT
    assert [entry.name for entry in place.iterdir()] == ["whole"]


def test_what_arrived_is_not_asked_for_again(tmp_path: Path) -> None:
    assert _send(tmp_path / "file", [300, 300], 600) == 0
    assert _send(tmp_path / "file", [], len(CONTENT)) == 600
