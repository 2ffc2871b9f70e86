"""Chunks made in advance by a thread: in order, with their errors, and with no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lockgate.adapters.oci.content import ahead
from lockgate.errors import IntegrityError


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_chunks_arrive_in_order_and_then_the_error_that_ended_them() -> None:
    def chunks() -> Iterator[bytes]:
        yield from (bytes([number]) for number in range(40))
        raise IntegrityError("the file has changed")

    seen = []
    with pytest.raises(IntegrityError, match="has changed"):
        for chunk in ahead(chunks()):
            seen.append(chunk)
    assert b"".join(seen) == bytes(range(40))
    assert readers() == []


def test_whoever_stops_early_leaves_no_reader_behind_and_no_file_half_read() -> None:
    closed = threading.Event()

    def chunks() -> Iterator[bytes]:
        try:
            while True:
                yield b"chunk"
        finally:
            closed.set()

    stream = ahead(chunks())
    assert next(stream) == b"chunk"
    stream.close()
    assert readers() == []
    assert closed.wait(10)
