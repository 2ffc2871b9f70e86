"""What bytes are, whatever the file is called: by magic numbers, and by walking a pickle without running it."""

from __future__ import annotations

import io
import itertools
import pickletools
import re
import struct
from enum import StrEnum

HEAD = 1 << 16
TAIL = 1 << 16
"""How much of a file's beginning and end `sniff` wants to see."""


class Kind(StrEnum):
    """What a file's content is."""

    PICKLE = "pickle"
    ZIP = "zip archive"
    ARCHIVE = "archive or compressed data"
    EXECUTABLE = "executable"
    SCRIPT = "script"
    HDF5 = "HDF5 (Keras)"
    NUMPY = "NumPy array"
    FLATBUFFER = "TensorFlow Lite"
    PICTURE = "picture or document"
    GGUF = "GGUF"
    SAFETENSORS = "safetensors"
    TEXT = "text"
    OTHER = "other data"


_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"PK\x03\x04", Kind.ZIP),
    (0, b"PK\x05\x06", Kind.ZIP),
    (0, b"PK\x07\x08", Kind.ZIP),
    (0, b"\x1f\x8b", Kind.ARCHIVE),
    (0, b"BZh", Kind.ARCHIVE),
    (0, b"\xfd7zXZ\x00", Kind.ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", Kind.ARCHIVE),
    (0, b"Rar!\x1a\x07", Kind.ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", Kind.ARCHIVE),
    (0, b"\x04\x22\x4d\x18", Kind.ARCHIVE),
    (0, b"!<arch>\n", Kind.ARCHIVE),
    (257, b"ustar", Kind.ARCHIVE),
    (0, b"\x7fELF", Kind.EXECUTABLE),
    (0, b"\xfe\xed\xfa", Kind.EXECUTABLE),
    (0, b"\xcf\xfa\xed\xfe", Kind.EXECUTABLE),
    (0, b"\xce\xfa\xed\xfe", Kind.EXECUTABLE),
    (0, b"\xca\xfe\xba\xbe", Kind.EXECUTABLE),
    (0, b"\0asm", Kind.EXECUTABLE),
    (0, b"#!", Kind.SCRIPT),
    (0, b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (512, b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (1024, b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (2048, b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (0, b"\x93NUMPY", Kind.NUMPY),
    (4, b"TFL3", Kind.FLATBUFFER),
    (0, b"%PDF-", Kind.PICTURE),
    (0, b"\x89PNG\r\n\x1a\n", Kind.PICTURE),
    (0, b"\xff\xd8\xff", Kind.PICTURE),
    (0, b"GGUF", Kind.GGUF),
)
_MODULE_LINE = re.compile(rb"[\w.]{1,200}\r?\n[\w.<>]{1,200}\r?\n")
_NAMES = re.compile(r"[\w.]{1,200} [\w.<>]{1,200}")
_IMPORTS = frozenset({"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MAX_OPCODES = 20_000


def sniff(head: bytes, tail: bytes = b"") -> Kind:
    """The kind of a file from its first and last bytes. A zip's directory at the end counts: Python reads such files as zip."""
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if head[:2] == b"MZ" and b"\0" in head[:256]:
        return Kind.EXECUTABLE
    if is_pickle(head):
        return Kind.PICKLE
    if has_zip_directory(tail):
        return Kind.ZIP
    if len(head) > 8 and head[8:9] == b"{" and b"\0" in head[:8]:
        return Kind.SAFETENSORS
    if is_text(head):
        return Kind.TEXT
    return Kind.OTHER


def has_zip_directory(tail: bytes) -> bool:
    """Whether a plausible end-of-central-directory record stands in `tail`; random weights hold the bare magic now and then."""
    at = len(tail)
    while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
        record = tail[at : at + 22]
        if len(record) < 22:
            continue
        disk, start, here, entries, size, _, _ = struct.unpack("<4HIIH", record[4:])
        if disk == start == 0 and here == entries and (size >= 46 * entries or entries == 0xFFFF):
            return True
    return False


def is_pickle(head: bytes) -> bool:
    """Whether the bytes begin a pickle that could run something, or a pickle of protocol 2 or later.

    Two bytes of magic alone say nothing: the length that begins a safetensors file can look like them.
    """
    marked = len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5
    if not marked and not _MODULE_LINE.search(head[:4096]):
        return False
    opcodes, seen = 0, set()
    try:
        for opcode, argument, _ in itertools.islice(
            pickletools.genops(io.BytesIO(head)), _MAX_OPCODES
        ):
            opcodes += 1
            if opcode.name not in ("GLOBAL", "INST") or _NAMES.fullmatch(str(argument)):
                seen.add(opcode.name)
    except Exception:
        # genops raises whatever its argument readers raise, here also where our window ends.
        seen.add("BROKEN")
    if marked:
        return bool(seen & _IMPORTS) or opcodes >= 3 or "STOP" in seen
    # Plain words can be opcodes of the old text protocol: only an import that is then called counts.
    called = {"MARK", "TUPLE", "REDUCE"} <= seen or ("STOP" in seen and {"MARK", "OBJ"} <= seen)
    return ("GLOBAL" in seen and called) or {"MARK", "INST", "STOP"} <= seen


def is_text(head: bytes) -> bool:
    """UTF-8, or an older encoding of one byte a character: no NUL, no control characters but white space."""
    if _CONTROL.search(head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start >= len(head) - 3:
            return True  # a character cut in two at the end of the window
        return sum(byte >= 0x80 for byte in head) <= len(head) // 20
    return True
