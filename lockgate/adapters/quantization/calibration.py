"""Reads a calibration data set."""

from __future__ import annotations

from pathlib import Path

from lockgate import calibration_set
from lockgate.domain.calibration import CalibrationSet, drawn
from lockgate.domain.spec import CalibrationSpec
from lockgate.errors import UsageError

BUILTIN = "builtin"
MAX_BYTES = 256 << 20


def read_calibration(spec: CalibrationSpec) -> CalibrationSet:
    """The items that `spec` draws. Read once: what is hashed is what the worker gets.

    Raises `UsageError` for a file that cannot be read, is too large or holds something else than calibration items.
    """
    builtin = spec.dataset == BUILTIN
    path = calibration_set.data_file() if builtin else Path(spec.dataset).expanduser()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(
                f"calibration.dataset {path} is larger than {MAX_BYTES >> 20} MiB",
                hint="a calibrated recipe needs some hundred texts: give a part of it",
            )
        return drawn(path.read_bytes(), BUILTIN if builtin else path.name, spec)
    except OSError as error:
        raise UsageError(
            f"calibration.dataset {path} cannot be read: {error.strerror}",
            hint="give `builtin` or a JSONL file",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"calibration.dataset {path}: {error}",
            hint='one JSON object a line: {"text": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}',
        ) from error
