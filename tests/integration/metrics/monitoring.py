"""The template's rules and scrape configuration in the forms that a Prometheus reads without its operator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "gitops_repo_template" / "platform" / "monitoring"
_PARTS = {"sourceLabels": "source_labels", "targetLabel": "target_label"}


def objects(kind: str) -> dict[str, dict[str, Any]]:
    """The template's objects of one kind, by name."""
    found = {}
    for path in sorted(MONITORING.glob("*.yaml")):
        for item in yaml.safe_load_all(path.read_text()):
            if item["kind"] == kind:
                found[item["metadata"]["name"]] = item
    return found


def write_rules(directory: Path) -> list[Path]:
    """A PrometheusRule's spec is a rule file."""
    paths = []
    for name, item in objects("PrometheusRule").items():
        path = directory / f"{name}.rules.yaml"
        path.write_text(yaml.safe_dump(item["spec"]))
        paths.append(path)
    return paths


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for item in objects("PrometheusRule").values()
        for group in item["spec"]["groups"]
        for rule in group["rules"]
    ]


def relabelings(monitor: str, key: str) -> list[dict[str, Any]]:
    """`relabelings` or `metricRelabelings` of a PodMonitor as a scrape configuration writes them."""
    (endpoint,) = objects("PodMonitor")[monitor]["spec"]["podMetricsEndpoints"]
    return [{_PARTS.get(k, k): v for k, v in rule.items()} for rule in endpoint.get(key, [])]


def named_metrics(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    bare = re.sub(r"\b(by|on|ignoring|group_left|group_right|without)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    words = re.findall(
        r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w)\s*(?!\s*\()", re.sub(r"\[\d+[smhd]\]", "", bare)
    )
    return {w.strip() for w in words} - {"and", "or", "unless", "bool", "by", "on"}
