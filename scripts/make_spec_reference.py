#!/usr/bin/env python3
"""Write the tables of keys and settings in docs/ from the types that read them; --check only says whether they are up to date."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lockgate.domain import cost, load, policy, scaling, spec
from lockgate.domain.evidence_schema import json_schema
from lockgate.domain.images import ImageRef
from lockgate.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
RELEASE: tuple[tuple[str, type[BaseModel]], ...] = (
    ("", spec.ReleaseSpec),
    ("calibration", spec.CalibrationSpec),
    ("hardware", spec.Hardware),
    ("serving", spec.ServingSpec),
    ("serving.resources", spec.Resources),
    ("serving.parallel", spec.Parallel),
    ("serving.scaling", scaling.Scaling),
    ("serving.scaling.to_zero", scaling.ToZero),
    ("serving.scaling.windows[]", scaling.Window),
    ("evaluation", spec.EvaluationSpec),
    ("evaluation.tasks[]", spec.EvaluationTask),
    ("benchmark", spec.BenchmarkSpec),
    ("benchmark.profiles[]", load.BenchmarkProfile),
    ("benchmark.profiles[].prompt_tokens, .output_tokens", load.Lengths),
    ("benchmark.profiles[].trace", load.RecordedLoad),
    ("benchmark.profiles[].sweep", load.Sweep),
    ("benchmark.service_level", load.ServiceLevel),
    ("benchmark.demand", cost.Demand),
    ("benchmark.prices.NAME", cost.Price),
    ("canary", spec.CanarySpec),
    ("canary.steps[]", spec.CanaryStep),
    ("canary.steps[].margins", spec.StepMargins),
    ("canary.probes", spec.ProbeSpec),
    ("canary.probes.questions[]", spec.Probe),
    ("canary.margins", spec.JudgeMargins),
    ("canary.judge", spec.JudgeTuning),
)
POLICY: tuple[tuple[str, type[BaseModel]], ...] = (
    ("", policy.Policy),
    ("weights", policy.WeightScanPolicy),
    ("weights.templates", policy.TemplatePolicy),
    ("images", policy.ImageScanPolicy),
    ("signing", policy.SigningPolicy),
    ("signing.provenance", policy.ProvenancePolicy),
    ("approvals.ENVIRONMENT", policy.ApprovalRule),
    ("forge", policy.ForgePolicy),
    ("waivers[]", policy.Waiver),
)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """The string literal below each field: what it means."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name == ImageRef.__name__:
            return "`REPOSITORY@sha256:…`"
        target = definitions[name]
        return kind(target, definitions) if "enum" in target else "mapping, below"
    if "anyOf" in schema:
        parts = [kind(part, definitions) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(parts)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    name = schema.get("type", "text")
    if name == "array":
        item = kind(schema["items"], definitions)
        at_least = ", at least one" if schema.get("minItems") else ""
        return f"list of {item.replace('mapping, below', 'mappings, below')}{at_least}"
    if name == "object":
        values = schema.get("additionalProperties", {"type": "string"})
        if values is True:
            return "mapping"
        return f"mapping of text to {kind(values, definitions).replace('mapping, below', 'mappings, below')}"
    words = {
        "string": "text",
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
    }[name]
    limits = [
        (f"≥ {schema['minimum']:g}" if "minimum" in schema else ""),
        (f"> {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else ""),
        (f"≤ {schema['maximum']:g}" if "maximum" in schema else ""),
        (f"< {schema['exclusiveMaximum']:g}" if "exclusiveMaximum" in schema else ""),
        (f"like `{schema['pattern']}`" if "pattern" in schema else ""),
    ]
    return " ".join([words, ", ".join(filter(None, limits))]).strip()


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (
        isinstance(value, tuple) and value and isinstance(value[0], BaseModel)
    ):
        listed = isinstance(value, tuple)
        given = [v.model_dump(mode="json", exclude_defaults=True) for v in value] if listed else {}
        return f"`{json.dumps(given)}`" if listed else "the defaults below"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


def table(path: str, model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    explained = meanings(model)
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        property_schema = schema["properties"][name]
        # An alternative within a cell would end it.
        cells = [
            f"`{name}`",
            kind(property_schema, definitions),
            default(field),
            explained.get(name, ""),
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tables(sections: tuple[tuple[str, type[BaseModel]], ...]) -> Iterator[str]:
    for path, model in sections:
        if path:
            yield ""
            yield f"### `{path}`"
        about = model.__dict__.get("__doc__") or ""
        if about and path:
            yield ""
            yield " ".join(about.split())
        yield ""
        yield from table(path, model)


def settings() -> Iterator[str]:
    schema = Settings.model_json_schema(by_alias=False)
    explained = meanings(Settings)
    yield ""
    yield "| variable | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"LOCKGATE_{name.upper()}"
        value = field.default
        shown = (
            "none"
            if value is None
            else f"`{str(value).lower() if value in (True, False) else value}`"
        )
        cells = [
            f"`{variable}`",
            kind(schema["properties"][name], schema.get("$defs", {})),
            shown,
            explained.get(name, ""),
        ]
        yield "| " + " | ".join(cells) + " |"


def filled(text: str) -> str:
    """A page with its generated parts made anew."""
    made = {"release": tables(RELEASE), "policy": tables(POLICY), "settings": settings()}
    for name, lines in made.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        if begin in text:
            before, rest = text.split(begin)
            after = rest.split(end)[1]
            text = f"{before}{begin}\n{chr(10).join(lines)}\n\n{end}{after}"
    return text


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        made = filled(text)
        if made != text:
            stale.append(page.name)
            if not check:
                page.write_text(made)
    schema = DOCS / "evidence.schema.json"
    made = json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"
    if not schema.exists() or schema.read_text() != made:
        stale.append(schema.name)
        if not check:
            schema.write_text(made)
    if stale and check:
        sys.stderr.write(f"out of date: {', '.join(stale)}: run scripts/make_spec_reference.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
