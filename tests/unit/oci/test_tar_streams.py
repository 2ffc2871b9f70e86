"""Archives of others: every member is given, or the archive is refused; and neither takes memory that the archive decides."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from lockgate.streams import ChunkFile
from lockgate.tar_streams import members

GIGABYTE = 1 << 30
FAILURES = (tarfile.TarError, EOFError, ValueError, OverflowError)


def packed(*given: tuple[str, bytes], **changes: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, body in given:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(body))
    return out.getvalue()


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def read(archive: bytes | Iterator[bytes]) -> list[tuple[str, bytes | None]]:
    stream = ChunkFile(iter([archive]) if isinstance(archive, bytes) else archive)
    found = members(io.BufferedReader(stream, 1 << 20))
    return [(member.name, content.read() if content else None) for member, content in found]


def test_members_come_with_their_content_whatever_their_names() -> None:
    long = "a/" * 200 + "é.json"
    given = [("config.json", b"{}"), (long, b"x" * 5000), ("empty", b"")]
    assert read(packed(*given)) == given


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_an_extension_of_a_header_is_not_read_because_it_says_it_is_large(kind: bytes) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield header(kind, 4 * GIGABYTE)
        for _ in range(4096):
            taken += 1 << 20
            yield bytes(1 << 20)

    with pytest.raises(tarfile.ReadError, match="extension"):
        read(endless())
    assert taken <= 8 << 20


def peak(make: Callable[[], Iterator[bytes]]) -> int:
    tracemalloc.start()
    try:
        stream = io.BufferedReader(ChunkFile(make()), 1 << 20)
        for _ in members(stream):
            continue
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_members_without_number_are_not_remembered() -> None:
    one = packed(("directory/", b""), type=tarfile.DIRTYPE)[:512]

    def many(count: int) -> Callable[[], Iterator[bytes]]:
        return lambda: (one * 1000 for _ in range(count))

    assert peak(many(12)) < peak(many(2)) + (1 << 20)


def test_a_file_with_holes_is_refused_before_its_map_is_read() -> None:
    def endless() -> Iterator[bytes]:
        extended = bytearray(header(tarfile.GNUTYPE_SPARSE, 512))
        yield bytes(extended)
        yield from (b"\xff" * 512 for _ in range(100_000))

    with pytest.raises(tarfile.ReadError, match="holes"):
        read(endless())


def test_an_archive_with_a_header_that_is_none_does_not_just_end_there() -> None:
    sound = packed(("a.json", b"{}"), ("b.json", b"{}"))
    damaged = bytearray(sound)
    damaged[1024 + 148] ^= 1  # the second header's checksum
    with pytest.raises(tarfile.ReadError, match="none"):
        read(bytes(damaged))
    with pytest.raises(FAILURES):
        read(sound[: 1024 + 300])


def test_attributes_for_all_members_are_few() -> None:
    records = b""
    for number in range(200):
        record = b" k%03d=v\n" % number
        records += b"%d" % (len(record) + 2) + record
    body = records.ljust(-(-len(records) // 512) * 512, b"\0")
    archive = header(tarfile.XGLTYPE, len(records)) + body + packed(("a.json", b"{}"))
    with pytest.raises(tarfile.ReadError, match="too much"):
        read(archive)
