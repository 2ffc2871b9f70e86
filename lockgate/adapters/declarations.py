"""What a model's own files say of it, for its bill of materials. Nothing is decided by it: the scan gate reads for itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockgate.domain.digests import read_json
from lockgate.domain.scanning import licenses

_LARGEST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Declaration:
    """Licenses are identifiers in lower case: as stated, or where none is, as the text of a license file reads."""

    licenses: tuple[str, ...]
    architecture: str | None
    """The first of `architectures` in `config.json`."""


def read_declaration(directory: Path) -> Declaration:
    """Of a scanned model's directory. What is missing or malformed is left out. Raises `OSError`."""
    files = {path.name.casefold(): path for path in directory.iterdir() if path.is_file()}
    config = _config(files.get("config.json"))
    front, _ = licenses.front_matter(_text(files.get("readme.md")))
    stated = [*licenses.stated_in_card(front), *licenses.stated_in_card(config)]
    if not stated:
        texts = [
            _text(path)
            for name, path in sorted(files.items())
            if name.startswith(("licen", "copying"))
        ]
        stated = [known for text in texts if (known := licenses.recognise(text)) is not None]
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return Declaration(tuple(dict.fromkeys(stated)), first if isinstance(first, str) else None)


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return file.read(licenses.MAX_TEXT).decode("utf-8", "replace")


def _config(path: Path | None) -> dict[str, Any]:
    if path is None or path.stat().st_size > _LARGEST_CONFIG:
        return {}
    try:
        data = read_json(path.read_bytes())
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
