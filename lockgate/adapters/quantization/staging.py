"""A directory that appears whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockgate.errors import QuantizationError


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields an empty sibling of `target`; renames it to `target` if the block ends well, removes it otherwise.

    What stood at `target` before is replaced only by a finished directory.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
        staging.mkdir(mode=0o755)
    except OSError as error:
        raise QuantizationError(f"cannot write to {target.parent}: {error}") from error
    try:
        yield staging
        old = target.parent / f".{target.name}.old-{secrets.token_hex(4)}"
        if target.exists():
            os.rename(target, old)
        os.rename(staging, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise QuantizationError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
