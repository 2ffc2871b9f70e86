"""The secret stores of a laid down repository: one beside every namespace's ExternalSecrets, each with an identity of its own.

The cloud's store is written once in the template (`clouds/<cloud>/secrets`), as an environment takes it up. Who may read the
release key may not be whoever reads another namespace's entries, so every copy names another identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lockgate.domain import gitops

_IDENTITY = "lockgate-secrets"
"""An environment's, in the cloud's words: a role, an account."""
VAULT_FIELD = "value"
_PREFECT = "prefect"
_OWN = {
    "lockgate": "pipeline",
    "lockgate-sign": "sign",
    "lockgate-tests": "tests",
    "argocd": "agent",
    "flux-system": "agent",
    _PREFECT: "prefect",
}
"""What the identity of a namespace is called after."""


def write_stores(
    store: Path, target: Path, secrets: Iterable[Path], *, of_prefect: bool = False
) -> None:
    """Write `store` into `target`, once for every namespace that an ExternalSecret in the files `secrets` is made in.

    `of_prefect`: for Prefect's alone, which is applied by itself; else for all but that.
    """
    documents = list(yaml.safe_load_all(store.read_text()))
    namespaces = {
        str(item["metadata"]["namespace"])
        for path in secrets
        for item in yaml.safe_load_all(path.read_text())
        if item["kind"] == "ExternalSecret"
    }
    stores = [
        _in_namespace(document, namespace, f"{_IDENTITY}-{_OWN[namespace]}")
        for namespace in sorted(namespaces & _OWN.keys())
        if (namespace == _PREFECT) is of_prefect
        for document in documents
    ]
    target.write_text("---\n".join(gitops.dump_yaml(item) for item in stores))


def _in_namespace(document: dict[str, Any], namespace: str, identity: str) -> dict[str, Any]:
    named = _identified(document, identity)
    return {**named, "metadata": {**named["metadata"], "namespace": namespace}}


def _identified(value: Any, identity: str, key: str = "") -> Any:
    """With another identity in the cloud; objects keep their names."""
    if isinstance(value, dict):
        return {name: _identified(item, identity, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_identified(item, identity, key) for item in value]
    if isinstance(value, str) and key != "name":
        return value.replace(_IDENTITY, identity)
    return value


def name_fields(path: Path) -> None:
    """Say of every entry that the ExternalSecrets in this file read, which of its fields: Vault's entries are maps, the clouds' are texts."""
    documents = list(yaml.safe_load_all(path.read_text()))
    entries = [
        e
        for item in documents
        if item["kind"] == "ExternalSecret"
        for e in item["spec"].get("data", [])
    ]
    for entry in entries:
        entry["remoteRef"]["property"] = VAULT_FIELD
    if entries:
        path.write_text("---\n".join(gitops.dump_yaml(item) for item in documents))
