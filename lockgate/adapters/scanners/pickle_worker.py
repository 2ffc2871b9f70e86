"""Worker: picklescan as a library, file by file. It walks opcodes; nothing is unpickled."""

from __future__ import annotations

import logging
import os
from typing import Any

from lockgate.adapters.scanners.worker import begin, say

MEMORY = 4 << 30
CPU_SECONDS = 3600
MAX_GLOBALS = 200


class _Kept(logging.Handler):
    """picklescan only logs that it could not read something: such messages are kept as findings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "Invalid file" in text or record.levelno >= logging.ERROR:
            self.messages.append(ascii(text)[:300])


def _scan(path: str, kept: _Kept) -> dict[str, Any]:
    from picklescan.scanner import scan_file_path

    kept.messages.clear()
    result = scan_file_path(path)
    found = sorted({(g.module, g.name, g.safety.value) for g in result.globals})
    unreadable = kept.messages[0] if kept.messages else ""
    if result.scan_err and not unreadable:
        unreadable = "it breaks off"
    # Dangerous ones first, so that the cut loses none of them to a flood of harmless names.
    found.sort(key=lambda item: item[2])
    return {
        "globals": [[m[:200], n[:200], s] for m, n, s in found[:MAX_GLOBALS]],
        "unreadable": unreadable,
    }


def main() -> None:
    job = begin(MEMORY, CPU_SECONDS)
    kept = _Kept()
    logger = logging.getLogger()
    logger.addHandler(kept)
    logging.getLogger("picklescan").addHandler(kept)
    import picklescan.scanner  # noqa: F401 - a broken installation must fail also where there is no file

    for path in job["files"]:
        try:
            say("file", path=path, **_scan(os.path.join(job["directory"], path), kept))
        except Exception as error:  # one bad file must not hide what the others hold
            say("error", path=path, detail=f"{type(error).__name__}: {ascii(str(error))[:200]}")
    say("finished")


if __name__ == "__main__":
    main()
