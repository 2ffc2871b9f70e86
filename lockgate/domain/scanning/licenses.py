"""The license a model states: by tag (model card, config, GGUF) and by the text of its LICENSE file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning.problems import Problem, high, low, medium, quoted

MAX_FRONT_MATTER = 64 << 10
MAX_OPEN_BRACKETS = 64
"""YAML's reader takes time that grows with the square of how deep brackets are nested."""
MAX_TEXT = 1 << 20

# Identifier -> phrases that must all stand in the text. The first match wins: narrower ones come first.
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("agpl-3.0", ("gnu affero general public license", "version 3")),
    ("lgpl-3.0", ("gnu lesser general public license", "version 3")),
    ("gpl-3.0", ("gnu general public license", "version 3")),
    ("gpl-2.0", ("gnu general public license", "version 2")),
    ("mpl-2.0", ("mozilla public license", "version 2.0")),
    ("cc-by-nc-sa-4.0", ("attribution-noncommercial-sharealike 4.0",)),
    ("cc-by-nc-nd-4.0", ("attribution-noncommercial-noderivatives 4.0",)),
    ("cc-by-nc-4.0", ("attribution-noncommercial 4.0",)),
    ("cc-by-sa-4.0", ("attribution-sharealike 4.0",)),
    ("cc-by-4.0", ("attribution 4.0 international",)),
    ("llama3.3", ("llama 3.3 community license",)),
    ("llama3.2", ("llama 3.2 community license",)),
    ("llama3.1", ("llama 3.1 community license",)),
    ("llama3", ("meta llama 3 community license",)),
    ("llama4", ("llama 4 community license",)),
    ("llama2", ("llama 2 community license",)),
    ("gemma", ("gemma terms of use",)),
    ("qwen-research", ("qwen research license",)),
    ("qwen", ("tongyi qianwen license agreement",)),
    ("qwen", ("qwen license agreement",)),
    ("mistral-research", ("mistral ai research license",)),
    ("mistral-non-production", ("mistral ai non-production license",)),
    ("deepseek", ("deepseek license agreement",)),
    ("openrail", ("openrail",)),
    ("apache-2.0", ("apache license", "version 2.0, january 2004")),
    ("mit", ("permission is hereby granted, free of charge, to any person obtaining a copy",)),
    ("isc", ("permission to use, copy, modify, and/or distribute this software",)),
    ("unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("bsd-3-clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("bsd-2-clause", ("redistribution and use in source and binary forms",)),
)
_PERMISSIVE = frozenset({"apache-2.0", "mit", "isc", "bsd-3-clause", "bsd-2-clause", "unlicense"})
_BRACKET = re.compile(r"[\[\]{}]")
_RESTRICTION = re.compile(
    r"non-?commercial|research (?:purposes )?only|not be used (?:for|in) (?:any )?commercial"
)


def front_matter(readme: str) -> tuple[dict[str, Any], list[Problem]]:
    """The YAML between the first two `---` lines of a model card; empty where there is none."""
    lines = readme.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}, []
    body: list[str] = []
    size = 0
    for line in lines[1:]:
        if line.strip() == "---":
            break
        size += len(line) + 1
        if size > MAX_FRONT_MATTER:
            return {}, [medium("card-malformed", "the model card's front matter is too large")]
        body.append(line)
    else:
        return {}, [medium("card-malformed", "the model card's front matter does not end")]
    text = "\n".join(body)
    if _nested(text) > MAX_OPEN_BRACKETS:
        return {}, [medium("card-malformed", "the front matter nests brackets too deeply")]
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.BaseLoader)):
            # Aliases of aliases grow exponentially when they are followed.
            return {}, [medium("card-malformed", "the model card's front matter uses YAML aliases")]
        # Text, lists and maps only: what makes numbers and dates of tagged text can be made to crash.
        data = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return {}, [medium("card-malformed", f"the front matter is no YAML: {quoted(str(error))}")]
    if data in (None, ""):
        return {}, []
    if not isinstance(data, dict):
        return {}, [medium("card-malformed", "the front matter is not a map")]
    return data, []


def _nested(text: str) -> int:
    """The most brackets that are open at one place; those in quoted text count too."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth = max(0, depth + (1 if match.group() in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest


def stated_in_card(data: Mapping[str, Any]) -> list[str]:
    """License identifiers of a card's front matter (or of a config), lower case; `other` is resolved by `license_name`."""
    value = data.get("license")
    entries = value if isinstance(value, list) else [value]
    stated = [str(entry).strip().lower() for entry in entries if entry]
    stated = [entry for entry in stated if entry not in ("", "null", "~", "none")]
    name = data.get("license_name")
    if name and isinstance(name, str):
        stated = [name.strip().lower() if entry == "other" else entry for entry in stated]
    return stated


def recognise(text: str) -> str | None:
    """Identifier of a license text, or None for one that is not known here."""
    plain = " ".join(text.lower().split())
    # A license names itself at its beginning; others may be mentioned further down.
    start = plain[:3000]
    for identifier, phrases in _TEXTS:
        if all(phrase in start for phrase in phrases):
            return identifier
    for identifier, phrases in _TEXTS:
        if all(phrase in plain for phrase in phrases):
            return identifier
    return None


def check_licenses(
    stated: Mapping[str, Sequence[str]],
    texts: Mapping[str, str],
    policy: WeightScanPolicy,
    accepted: Collection[str] = (),
) -> dict[str, list[Problem]]:
    """Problems by file. `stated` are identifiers by the file that states them, `texts` the license texts by file, `accepted`
    those files whose very text the policy accepts.

    A model without any license information gets one under the empty path.
    """
    allowed = {identifier.lower() for identifier in policy.licenses}
    found: dict[str, list[Problem]] = {}

    def add(path: str, problem: Problem) -> None:
        found.setdefault(path, []).append(problem)

    recognised = {path: recognise(text) for path, text in texts.items()}
    tags = {identifier for identifiers in stated.values() for identifier in identifiers}
    for path, identifiers in stated.items():
        for identifier in identifiers:
            if identifier not in allowed:
                add(path, high("license-not-allowed", f"license {quoted(identifier)}"))
    for path, known in recognised.items():
        if path in accepted:
            continue
        if known is None:
            make = low if policy.license_text == "optional" else high
            add(path, make("license-text-unknown", "the license text is not one known here"))
            continue
        if known not in allowed:
            add(path, high("license-not-allowed", f"the text is that of {known}"))
        elif tags and known not in tags:
            message = f"the text is that of {known}, the tag says {', '.join(sorted(tags))}"
            add(path, high("license-disagrees", message))
        if known in _PERMISSIVE and (
            match := _RESTRICTION.search(" ".join(texts[path].lower().split()))
        ):
            message = f"a {known} text with a restriction in it: {quoted(match.group())}"
            add(path, high("license-restricted", message))
    if policy.license_text == "required" and not texts:
        add("", high("license-text-missing", "no license text, and the policy asks for one"))
    if not tags and not accepted and not any(recognised.values()):
        if policy.license_required:
            add("", high("license-missing", "no license is stated, and the policy asks for one"))
        else:
            add("", low("license-missing", "no license is stated"))
    return found
