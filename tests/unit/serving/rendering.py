"""A GitOps repository in which nothing was released, candidates to render into it, and a strict check of what comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec

TEMPLATE = Path(__file__).parents[3] / "gitops_repo_template"
KUBERNETES = "1.35"


def occupant(name: str, **serving: Any) -> Occupant:
    candidate = Candidate(
        model=ImageRef.parse("registry.example.com/smol@" + Digest.of_bytes(name.encode())),
        runtime=ImageRef.parse("registry.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec.model_validate({"served_model_name": "smol", **serving}),
    )
    return Occupant(candidate=candidate, release=name, evidence=Digest.of_bytes(b"evidence"))


def state_of(**changes: Any) -> ReleaseState:
    data = {
        "model": "smol",
        "environment": "prod",
        "phase": Phase.DEPLOYING if "b" in changes else Phase.STABLE,
        "a": occupant("one"),
        "stable": Slot.A,
        "canary": CanarySpec(steps=(CanaryStep(weight=5), CanaryStep(weight=25))),
        **changes,
    }
    return ReleaseState.model_validate(data)


def repository(root: Path, components: Sequence[str] = (), patches: Sequence[Any] = ()) -> Path:
    """The template's `apps/` with an environment `prod` of these components and patches."""
    shutil.copytree(TEMPLATE / "apps", root / "apps")
    environment = root / "apps" / "vllm" / "environments" / "prod"
    environment.mkdir()
    data = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "components": [f"../../components/{name}" for name in components],
        "patches": [
            {"target": {"kind": patch["kind"]}, "patch": yaml.safe_dump(patch)} for patch in patches
        ],
    }
    (environment / "kustomization.yaml").write_text(yaml.safe_dump(data))
    return root


def write_component(root: Path, name: str, patch: dict[str, Any]) -> None:
    """A component of one patch, such as a platform team may have."""
    directory = root / "apps" / "vllm" / "components" / name
    directory.mkdir()
    data = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": [{"target": {"kind": patch["kind"]}, "patch": yaml.safe_dump(patch)}],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(data))


def objects(files: dict[str, str]) -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name, each one strictly valid."""
    found = {}
    for text in files.values():
        item = yaml.safe_load(text)
        check(item)
        found[item["kind"], item["metadata"]["name"]] = item
    return found


def check(item: dict[str, Any]) -> None:
    """Raises unless the object is valid for a strict API server. A kind without a schema is a failure."""
    group, _, version = item["apiVersion"].rpartition("/")
    own = TEMPLATE / "schemas" / group / f"{item['kind'].lower()}_{version}.json"
    if own.is_file():
        jsonschema.Draft202012Validator(json.loads(own.read_text())).validate(item)
    else:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
