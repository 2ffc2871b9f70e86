"""The members of a tar archive that somebody else made, read as a stream in bounded memory.

The standard library reads a header's extension whole, however large it says it is, keeps every member that it saw, and takes a
header that is none for the archive's end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

CHUNK = 1 << 20
MAX_EXTENSION = 1 << 20
"""Bytes of a header's extension: names and attributes of one member."""
MAX_GLOBAL = 64
"""Attributes that an archive may set for all its members."""
_EXTENSIONS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)


class _Bounded(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Bounded:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):
                raise  # the archive's end
            raise tarfile.ReadError(f"a header that is none: {error}") from error
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a file with holes in it")
        if member.type in _EXTENSIONS and not 0 <= member.size <= MAX_EXTENSION:
            raise tarfile.ReadError(f"an extension of a header of {member.size} bytes")
        return member


def members(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Every member of an uncompressed archive, with its content if it is a regular file, which is to be read before the next.

    Raises `tarfile.TarError`, `EOFError`, `ValueError` and `OverflowError` for what is no archive, and what the stream raises.
    """
    with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_Bounded) as archive:
        for member in archive:
            whole = member.isreg() and not member.issparse()
            yield member, archive.extractfile(member) if whole else None
            archive.members = []  # type: ignore[attr-defined]  # documented only in its code
            if len(archive.pax_headers) > MAX_GLOBAL:
                raise tarfile.ReadError("an archive that says too much of all its members")
